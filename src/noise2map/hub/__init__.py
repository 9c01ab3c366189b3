"""Models on their way to the hub: the metadata of a card, a whole folder, one commit.

Downloading needs nothing from here: ``from_pretrained`` of every class takes ``owner/name``, and so does ``--model``.
"""
