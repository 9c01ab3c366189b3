"""A folder -> a repository of the hub, in one commit: it is there whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from noise2map.hub.cards import is_unwritten

# What a broken connection raises, whichever HTTP library the hub's client stands on.
_NETWORK = tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception) and base is not OSError)


def check_target(repo_id: str, token: str | None = None) -> None:
    """Whether something could be uploaded there, as far as can be told without asking the hub.

    Args:
        repo_id: ``owner/name``.
        token: The user's; the one signed in with, where None.

    Raises:
        ValueError: If ``repo_id`` is no name of a repository.
        PermissionError: If nobody is signed in.
        ConnectionError: If the hub's client was told to stay offline.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repository {repo_id!r} is no name for the hub, expected owner/name: {_line(error)}") from None
    if repo_id.count("/") != 1:
        raise ValueError(f"repository {repo_id!r} has no owner; expected owner/name")
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if token is None and get_token() is None:
        raise PermissionError("nobody is signed in to the hub; run `hf auth login` or set HF_TOKEN to a token that may write")


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload a noise2map model",
    token: str | bool | None = None,
    create_pr: bool = False,
) -> str:
    """Put every file of a folder into a repository, which is made where there is none.

    Args:
        folder: What to upload.
        repo_id: ``owner/name``.
        private: Of a new repository; None: as its owner's default.
        revision: Branch, made where there is none.
        message: Of the commit.
        token: See `check_target`.
        create_pr: Propose the commit in a pull request.

    Returns:
        The address of the commit.

    Raises:
        PermissionError: If the hub does not let this user write there.
        ConnectionError: If the hub cannot be reached, or breaks off; what it held stays.
    """
    api = HfApi(token=token)
    with _sentences(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        found = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision, create_pr=create_pr
        )
    return str(found.commit_url)


def written_card(repo_id: str, revision: str | None = None, token: str | None = None) -> str | None:
    """The card that somebody wrote for a repository; None where there is none, or an empty form.

    Raises:
        PermissionError: If the hub does not let this user read there.
        ConnectionError: If the hub cannot be reached.
    """
    with _sentences(repo_id):
        try:
            path = hf_hub_download(repo_id, "README.md", revision=revision, token=token)
        except LocalEntryNotFoundError as error:  # of the entries not found: the hub did not say so, it did not answer
            reason = error.__cause__ or error
            raise ConnectionError(f"the hub did not say whether {repo_id} has a card; nothing changed: {_line(reason)}") from None
        except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
            return None
    text = Path(path).read_text(encoding="utf-8")
    return None if is_unwritten(text) else text


@contextmanager
def _sentences(repo_id: str) -> Iterator[None]:
    try:
        yield
    except RepositoryNotFoundError:
        raise PermissionError(f"the hub shows no repository {repo_id} to this user: signed in with another token?") from None
    except OfflineModeIsEnabled as error:
        raise ConnectionError(_line(error)) from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise PermissionError(f"the hub does not let this user write to {repo_id} ({status}): {_line(error)}") from None
        raise ConnectionError(f"the hub refused the upload to {repo_id}, nothing there has changed: {_line(error)}") from None
    except _NETWORK as error:
        raise ConnectionError(f"the hub at {constants.ENDPOINT} cannot be reached: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return next((" ".join(line.split()) for line in str(error).splitlines() if line.strip()), type(error).__name__)
