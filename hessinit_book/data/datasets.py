"""`load`: the one door to the data sets."""

from __future__ import annotations

from pathlib import Path

from hessinit_book.data import download as _download
from hessinit_book.data import full, shipped
from hessinit_book.data.images import ImageData
from hessinit_book.errors import ParameterError


def load(
    name: str,
    *,
    sample: bool,
    data_dir: str | Path | None = None,
    download: bool | None = None,
) -> ImageData:
    """Load MNIST, FashionMNIST or CIFAR-10, in full or as the sample that ships with the package.

    The sample needs no file and no network. The full set is read from a folder; it is never
    replaced by the sample without being asked to.

    Args:
        name: "mnist", "fashion_mnist" or "cifar10"; case, "-", "_" and spaces do not matter
            ("CIFAR-10").
        sample: True for the shipped sample (2000 train and 500 test images of MNIST, 1000 and
            500 of FashionMNIST, 1500 and 500 of CIFAR-10), False for the full set (60000 and
            10000 of the first two, 50000 and 10000 of CIFAR-10).
        data_dir: folder of the full sets, laid out as torchvision does ("MNIST/raw/...",
            "FashionMNIST/raw/...", "cifar-10-batches-py/..."). Default: environment variable
            HESSINIT_DATA, or else the user's cache folder. Not used for the sample.
            FashionMNIST is also found where the Debian package `dataset-fashion-mnist` puts
            it.
        download: whether to download a full set whose files are absent. Default: yes, unless
            environment variable HESSINIT_OFFLINE is set to a true value ("1", "true", ...).

    Returns:
        The data; images of shape (n, 3, 32, 32) for CIFAR-10, (n, 1, 28, 28) for the others.

    Raises:
        ParameterError: no data set of that name.
        DataError: the full set is not there and could not be downloaded, or files, shipped
            ones or those of the full set, are not what they should be.

    Source:
        LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document
        recognition", Proc. IEEE 86 (1998): MNIST. Xiao, Rasul, Vollgraf, arXiv 1708.07747:
        FashionMNIST. Krizhevsky, "Learning multiple layers of
        features from tiny images", technical report, University of Toronto (2009): CIFAR-10.

    Example:
        >>> load("CIFAR-10", sample=True)
        ImageData(CIFAR-10 sample: 1500 train and 500 test images, 3 x 32 x 32, 10 classes)
    """
    key = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    if key not in full.SETS:
        raise ParameterError(
            f'no data set {name!r}; there is "mnist", "fashion_mnist" and "cifar10"'
        )
    if sample:
        return shipped.read(key)
    folder, explicit = full.find_folder(key, data_dir)
    files = full.find_files(key, folder)
    if files is None:
        if download is False:
            raise full.absent(key, folder, "download=False")
        if download is None and full.is_offline():
            raise full.absent(key, folder, "HESSINIT_OFFLINE forbids a download")
        files = _download.fetch(key, folder, may_make_folder=not explicit)
    return full.read(key, files)
