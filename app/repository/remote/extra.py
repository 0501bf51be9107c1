"""The packages that a scheme needs, which come by an extra: none of them is imported without a URL."""

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
    """Require the packages of a URL's scheme.

    Raises:
        MissingExtraError: names the extra, and the first package that is missing.
    """
    extra = SCHEMES[url.scheme]
    for package in _PACKAGES[extra]:
        if find_spec(package) is None:
            raise MissingExtraError(
                f"model_dir={url} needs the extra {extra!r} (pip install 'panther-sketch[{extra}]'): "
                f"package {package!r} is not installed"
            )
