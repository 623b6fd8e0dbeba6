"""Other packages that only some calls need; setup.cfg's extras hold them."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from ..errors import MissingPackageError

# Without its dependencies where those are the base's, or packages that it does not use but pins to old versions:
# torchattacks wants requests 2.25, and easyrobust timm 0.5.4.
_INSTALL = {
    "easyrobust": "pip install --no-deps easyrobust==0.2.4",
    "easyrobust.models": "pip install --no-deps easyrobust==0.2.4 && "
    "pip install einops ftfy opt_einsum PyWavelets regex 'setuptools<81'",
    "datasets": "pip install 'datasets>=4'",
    "skimage": "pip install 'ns_easyrobust[experiments]'",
    "torchattacks": "pip install --no-deps torchattacks",
}
_PROJECT = {"cv2": "opencv-python-headless", "skimage": "scikit-image", "sklearn": "scikit-learn"}  # as pip knows them


def import_package(module: str, purpose: str) -> ModuleType:
    """Import ``module`` of another package, which ``purpose`` needs.

    Raises:
        MissingPackageError: it is not installed, or lacks what it needs itself; the message says what installs it.

    Example:
        >>> from ns_easyrobust.utils import import_package
        >>> import_package("torchattacks", "fgsm").FGSM.__name__
        'FGSM'
    """
    package = module.partition(".")[0]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)  # not the user's to fix
            warnings.filterwarnings("ignore", category=SyntaxWarning)  # easyrobust's escapes, from Python 3.12 on
            return importlib.import_module(module)
    except ImportError as error:
        project = _PROJECT.get(package, package)
        install = _INSTALL.get(module) or _INSTALL.get(package) or f"pip install {project}"
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
            found = f"expected {project}, found it not installed. Install it"
        else:
            found = f"expected to import {module}, found {str(error).rstrip('.')}. Install what is missing"
        raise MissingPackageError(f"{purpose}: {found} ({install}).") from error
