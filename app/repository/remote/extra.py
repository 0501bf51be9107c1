"""Packages required by a URL's scheme, installed by an extra; none of them is imported without a URL."""

from importlib.util import find_spec

from app.config.model_url import SCHEMES, ModelUrl
from app.repository.remote.errors import MissingExtraError

_PACKAGES = {
    "s3": ("fsspec", "s3fs"),
    "gs": ("fsspec", "gcsfs"),
    "az": ("fsspec", "adlfs"),
    "https": ("fsspec", "aiohttp"),
}


def require_extra(url: ModelUrl) -> None:
    """Check that the packages for a URL's scheme are installed.

    Raises:
        MissingExtraError: A package is missing; the message names it and the extra.
    """
    extra = SCHEMES[url.scheme]
    for package in _PACKAGES[extra]:
        if find_spec(package) is None:
            raise MissingExtraError(
                f"model_dir={url} requires the extra {extra!r} (pip install 'panther-sketch[{extra}]'): "
                f"package {package!r} is not installed"
            )
