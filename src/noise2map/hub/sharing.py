"""``model.push_to_hub``, with a card of ours in place of an empty form."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar


class SharedOnHub:
    """Lets a model of maps be uploaded as transformers documents it.

    Attributes:
        task: Name of the model's task.
    """

    task: ClassVar[str]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
        **save_options: Any,
    ) -> str:
        """Upload weights and configuration; push the processor to the same repository, too.

        A card that somebody has written there stays; where there is none, one with the hub's metadata is made.

        Args:
            repo_id: ``owner/name``; made where there is none.
            commit_message: Of the commit.
            private: Of a new repository; None: as its owner's default.
            token: The user's; the one signed in with, where None.
            revision: Branch.
            create_pr: Propose the commit in a pull request.
            license: The hub's name of the licence of these weights, for a new card.
            **save_options: For ``save_pretrained``, e.g. ``max_shard_size``.

        Returns:
            The address of the commit.

        Raises:
            ValueError: If ``repo_id`` is no name of a repository.
            PermissionError: If the user may not write there.
            ConnectionError: If the hub cannot be reached.
        """
        # A model that stays here needs no client of the hub.
        from noise2map.hub.cards import plain_card, with_metadata
        from noise2map.hub.upload import check_target, upload, written_card

        check_target(repo_id, token)
        with TemporaryDirectory() as name:
            folder = Path(name)
            self.save_pretrained(folder, **save_options)  # type: ignore[attr-defined]
            if written_card(repo_id, revision, token) is None:
                text = plain_card(repo_id, self.task, type(self).__name__)
                (folder / "README.md").write_text(with_metadata(text, {"license": license}), encoding="utf-8")
            message = commit_message or f"Upload {type(self).__name__}"
            return upload(folder, repo_id, private=private, revision=revision, message=message, token=token, create_pr=create_pr)
