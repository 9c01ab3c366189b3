"""``noise2map app``: the models in a browser. What is asked and answered knows nothing of HTTP; `server` does."""
