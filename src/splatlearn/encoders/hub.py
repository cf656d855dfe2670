"""Where published weights come from: a file that is named, the Hugging Face cache, then the hub. Never random."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from splatlearn.errors import BadData


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that is here.

    Args:
        path: where.
        source: the name it was asked for by: a file, or a hub repository.
        licence: of these weights, as the hub states it; `unknown` of a named file.
    """

    path: Path
    source: str
    licence: str

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(
    weights: str | Path,
    repository: str,
    *,
    need: str,
    advice: str,
    licence: str = "unknown",
    filename: str = "model.safetensors",
) -> WeightFile:
    """The file of weights: `weights` where it is given, else of the cache, else fetched.

    Args:
        weights: a file, or empty.
        repository: of the hub; empty where the weights are on none.
        need: who needs which weights, the beginning of the message (`LPIPS needs VGG16 weights`).
        advice: what to do, its end.
        licence: of the hub's file.
        filename: in the repository.

    Raises:
        BadData: they are nowhere; names every place that was looked at.
    """
    if weights:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise BadData(f"{path}: no such file of weights. {need}: {advice}")
        return WeightFile(path, str(weights), "unknown")
    if not repository:
        raise BadData(f"{need}: no file of them was named, and they are on no hub. {advice}")
    return WeightFile(_from_hub(repository, filename, need, advice), repository, licence)


def _from_hub(repository: str, filename: str, need: str, advice: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(hf_hub_download(repository, filename))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BadData(
            f"{need}: {filename} of {repository} is not in the Hugging Face cache ({HF_HUB_CACHE}), and could not be "
            f"fetched from the hub ({type(error).__name__}). {advice}"
        ) from error
