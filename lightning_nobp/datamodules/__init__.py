"""Data modules: labelled images in batches, for any rule; and a few other tasks."""

from lightning_nobp.datamodules.attitude import AttitudeDataModule
from lightning_nobp.datamodules.base import ImageDataModule
from lightning_nobp.datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule
from lightning_nobp.datamodules.digits import DigitsDataModule
from lightning_nobp.datamodules.dynamical_network import CoupledOscillatorsDataModule
from lightning_nobp.datamodules.gray_to_colour import GrayToColourDataModule
from lightning_nobp.datamodules.image_folder import ImageFolderDataModule
from lightning_nobp.datamodules.mnist import FashionMNISTDataModule, MNISTDataModule
from lightning_nobp.datamodules.nist7x7 import NIST7x7DataModule
from lightning_nobp.datamodules.parity import ParityDataModule, XORDataModule
from lightning_nobp.datamodules.series import SeriesDataModule
from lightning_nobp.datamodules.time_series import TimeSeriesDataModule
from lightning_nobp.datamodules.tiny_imagenet import TinyImageNetDataModule
from lightning_nobp.datamodules.yin_yang import YinYangDataModule

__all__ = [
    "AttitudeDataModule",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CoupledOscillatorsDataModule",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "GrayToColourDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "NIST7x7DataModule",
    "ParityDataModule",
    "SeriesDataModule",
    "TimeSeriesDataModule",
    "TinyImageNetDataModule",
    "XORDataModule",
    "YinYangDataModule",
]
