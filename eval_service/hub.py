"""Revisions of a model on the Hugging Face Hub: which there are, what files each has, and their download.

Published training runs (Pythia, OLMo) keep intermediate checkpoints as branches or tags of one repository. Only config,
tokenizer and safetensors files are taken: no pickle is read and no code of a repository runs. Each file is compared with
the hash that the Hub states; what an interrupted download left is resumed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, ModelInfo, constants, get_session
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id  # type: ignore[attr-defined]  # public, as its docs say

from eval_service.cache import Stopped
from eval_service.position import Position, StepNames, chosen, in_order
from losslens.errors import DataMismatch, EnvironmentFailure, LosslensError, UserError

logger = logging.getLogger(__name__)

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # between tries, unless the server says how long; from the first again after progress
_LONGEST_WAIT_S = 300.0
_CHUNK = 1 << 20  # bytes

# Exactly the files that transformers and vLLM load of a text model without running its code; all lie at the top.
_TEXTS = re.compile(
    r"config\.json|generation_config\.json|model\.safetensors\.index\.json"
    r"|tokenizer\.(json|model)|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(json|txt)|merges\.txt|spiece\.model|sentencepiece\.bpe\.model|chat_template\.jinja"
)
_WHOLE, _SHARD = "model.safetensors", re.compile(r"model-\d+-of-\d+\.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Revision:
    """A branch, tag or commit."""

    repo: str
    name: str
    commit: str
    position: Position

    @property
    def checkpoint_id(self) -> str:
        """ORG/NAME@revision."""
        return f"{self.repo}@{self.name}"

    @property
    def run_id(self) -> str:
        """ORG/NAME, or ORG/NAME/branch where the names tell several trainings apart."""
        return f"{self.repo}/{self.position.branch}" if self.position.branch else self.repo


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file and the hash by which it is known: SHA-256, or git's own for small files."""

    name: str
    bytes: int
    sha256: str | None
    git: str | None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a revision holds of what is needed."""

    files: tuple[RemoteFile, ...]
    modified: datetime | None

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def weights(self) -> list[str | None]:
        """SHA-256 of each weight file, in order of their names."""
        return [file.sha256 for file in sorted(self.files, key=lambda file: file.name) if file.name.endswith(".safetensors")]


class Hub:
    """A repository of models. `endpoint` is the one of HF_ENDPOINT unless given.

    Raises:
        UserError: what is not the name of a repository.
    """

    def __init__(self, repo: str, endpoint: str | None = None) -> None:
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise UserError(f"{repo!r} is not the name of a model on the Hub", "give hf:ORG/NAME") from error
        self.repo, self._api, self._never = repo, HfApi(endpoint=endpoint), threading.Event()

    @property
    def url(self) -> str:
        """The page of the model."""
        return f"{self._api.endpoint}/{self.repo}"

    def revisions(self, patterns: Sequence[str], names: StepNames) -> list[Revision]:
        """Branches and tags that match one of the shell patterns, in order of step; a pattern may also be a commit.

        Raises:
            UserError: no such repository, or nothing matches.
            EnvironmentFailure: the Hub does not answer.
        """
        refs = self._ask(lambda: self._api.list_repo_refs(self.repo), "list the revisions")
        commits = {ref.name: str(ref.target_commit) for ref in (*refs.tags, *refs.branches)}
        if strange := [commit for commit in commits.values() if not _COMMIT.fullmatch(commit)]:
            raise self._no_hub(f"{strange[0]!r} for a commit")
        wanted = chosen(commits, patterns)
        commits |= {pattern: pattern for pattern in patterns if _COMMIT.fullmatch(pattern)}
        wanted += [pattern for pattern in patterns if _COMMIT.fullmatch(pattern)]
        if not wanted:
            there = ", ".join(sorted(commits)[:5])
            raise UserError(f"no revision of {self.repo} matches {', '.join(patterns)}", f"it has {len(commits)}: {there} ...")
        found = [Revision(self.repo, name, commits[name], names.read(name)) for name in wanted]
        return sorted(found, key=lambda revision: in_order(revision.position, revision.name))

    def contents(self, revision: Revision, stop: threading.Event | None = None) -> Contents:
        """The files to fetch.

        Raises:
            UserError: the revision is gone, or has no safetensors weights or no config.
            EnvironmentFailure: the Hub does not answer.
        """
        info = self._info(revision.commit, f"list the files of {revision.checkpoint_id}", stop)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        weights = [_WHOLE] if _WHOLE in siblings else [name for name in siblings if _SHARD.fullmatch(name)]
        if not weights:
            raise _without_weights(revision, siblings)
        if "config.json" not in siblings:
            raise UserError(f"{revision.checkpoint_id} has no config.json", "it is not a Hugging Face model: leave it out of --revisions")
        files = []
        for name in sorted([*weights, *(name for name in siblings if _TEXTS.fullmatch(name))]):
            sibling, lfs = siblings[name], siblings[name].lfs
            if sibling.size is None or not (lfs or sibling.blob_id):
                raise self._no_hub(f"neither size nor hash of {name}")
            files.append(RemoteFile(name, sibling.size, lfs.sha256 if lfs else None, None if lfs else sibling.blob_id))
        return Contents(tuple(files), info.last_modified)

    @cached_property
    def licence(self) -> str | None:
        """What the model card says; intermediate revisions often have none, so it is the one of the main branch."""
        card: Any = self._info(None, f"read the card of {self.repo}").card_data
        licence = card.get("license") if card else None
        return licence if isinstance(licence, str) else None

    def download(self, revision: Revision, contents: Contents, into: Path, stop: threading.Event) -> None:
        """Fetch what `into` lacks.

        Raises:
            DataMismatch: a file is not what the Hub says it is; it is removed.
            EnvironmentFailure: the Hub does not answer.
            Stopped: `stop` was set; what has arrived is kept.
        """
        for file in contents.files:
            if (into / file.name).is_file():
                verify(into / file.name, file, revision, stop)
            else:
                self._fetch(revision, file, into, stop)

    def _fetch(self, revision: Revision, file: RemoteFile, into: Path, stop: threading.Event) -> None:
        partial = into / f"{file.name}.partial"
        url = f"{self.url}/resolve/{revision.commit}/{file.name}"
        what = f"download {file.name} of {revision.checkpoint_id}"
        partial.touch()
        while (before := partial.stat().st_size) < file.bytes:
            self._ask(lambda: self._stream(url, partial, file.bytes, stop), what, stop, progress=lambda: partial.stat().st_size)
            if partial.stat().st_size == before:
                raise self._no_hub(f"no more than {before:,} of {file.bytes:,} bytes of {file.name}")
        verify(partial, file, revision, stop)
        partial.rename(into / file.name)

    def _stream(self, url: str, partial: Path, most: int, stop: threading.Event) -> None:
        """Append what the server sends from where the file ends; not more than `most` bytes and a bit, whatever it sends."""
        have = partial.stat().st_size
        asked = {"Range": f"bytes={have}-"} if have else {}
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", **asked}
        with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            with partial.open("ab" if response.status_code == 206 else "wb") as out:
                for chunk in response.iter_bytes():  # as they come: what has arrived when a connection breaks is kept
                    if stop.is_set():
                        raise Stopped
                    if out.tell() > most:
                        break
                    out.write(chunk)

    def _info(self, revision: str | None, what: str, stop: threading.Event | None = None) -> ModelInfo:
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        return self._ask(lambda: self._api.model_info(self.repo, revision=revision, files_metadata=True, timeout=timeout), what, stop)

    def _ask(self, call: Callable[[], _T], what: str, stop: threading.Event | None = None, progress: Callable[[], int] = lambda: 0) -> _T:
        """Call, again and again while the fault is the server's or the network's."""
        tries, had = 0, progress()
        while True:
            try:
                return call()
            except (HfHubHTTPError, httpx2.TransportError) as error:
                if not _may_pass(error):
                    raise self._refusal(error, what) from error
                if progress() > had:
                    tries, had = 0, progress()
                if tries == len(WAITS_S):
                    raise EnvironmentFailure(
                        f"{self._api.endpoint} does not let us {what}: {_first_line(error)}",
                        "try again later; what has been downloaded and scored is kept",
                    ) from error
                logger.warning("cannot %s: %s; trying again", what, _first_line(error))
                if (stop or self._never).wait(_wait_s(error, tries)):
                    raise Stopped from error
                tries += 1
            except ConnectionError as error:  # HF_HUB_OFFLINE
                raise EnvironmentFailure(f"cannot {what}: {_first_line(error)}", "unset HF_HUB_OFFLINE") from error
            except (KeyError, TypeError, ValueError, httpx2.InvalidURL) as error:
                raise self._no_hub(f"{type(error).__name__}: {_first_line(error)}") from error

    def _refusal(self, error: Exception, what: str) -> LosslensError:
        if isinstance(error, GatedRepoError):
            return UserError(f"{self.repo} is gated", f"accept its terms at {self.url}, then `hf auth login` or set HF_TOKEN")
        if isinstance(error, RevisionNotFoundError):
            return UserError(f"{self.repo} has no such revision any more", "see --revisions")
        if isinstance(error, RepositoryNotFoundError):
            return UserError(f"there is no model {self.repo} on {self._api.endpoint}", "check the name; a private one needs HF_TOKEN")
        return EnvironmentFailure(f"{self._api.endpoint} does not let us {what}: {_first_line(error)}", "see HF_ENDPOINT and HF_TOKEN")

    def _no_hub(self, what: str) -> EnvironmentFailure:
        return EnvironmentFailure(f"{self._api.endpoint} does not answer as the Hub does: {what}", "see HF_ENDPOINT")


def verify(path: Path, file: RemoteFile, revision: Revision, stop: threading.Event) -> None:
    """A file has the size and the hash that the Hub states.

    Raises:
        DataMismatch: naming the file, which is removed.
        Stopped: `stop` was set.
    """
    digest: Any = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)
    if (size := path.stat().st_size) == file.bytes:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                if stop.is_set():
                    raise Stopped
                digest.update(chunk)
    if size != file.bytes or digest.hexdigest() != (file.sha256 or file.git):
        path.unlink()
        raise DataMismatch(
            f"{file.name} of {revision.checkpoint_id} is not what the Hub says it is: its size or hash differs",
            "it was removed from the cache: run again to fetch it afresh; if that does not help, the Hub's copy is damaged",
        )


def _without_weights(revision: Revision, siblings: dict[str, Any]) -> UserError:
    pickles = sorted(name for name in siblings if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    has = f", only {pickles[0]}" if pickles else ""
    return UserError(f"{revision.checkpoint_id} has no safetensors weights{has}", "pickles are not read: convert it, or leave it out")


def _may_pass(error: HfHubHTTPError | httpx2.TransportError) -> bool:
    """Whether trying again can help: the network, a busy or broken server."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return not isinstance(error, httpx2.UnsupportedProtocol)


def _wait_s(error: HfHubHTTPError | httpx2.TransportError, tries: int) -> float:
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked), _LONGEST_WAIT_S) if re.fullmatch(r"\d+", asked) else WAITS_S[tries]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
