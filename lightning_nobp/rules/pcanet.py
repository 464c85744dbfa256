"""The classical PCANet."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_nobp.functional.ridge import LinearReadout, dual_ridge, ridge_solve
from lightning_nobp.metrics import FeatureRows, NormalEquations, PatchStatistics, SummedMetric
from lightning_nobp.nn.networks import NetworkFactory
from lightning_nobp.nn.pcanet import HashingNetwork, PCAConv2d
from lightning_nobp.rules.closed_form import ClosedFormRule
from lightning_nobp.rules.synchronisation import broadcast_from_main

_CHUNK = 50
"""Images whose histograms are made at once."""


class PCANet(ClosedFormRule):
    """Two layers of principal components, binary hashing, block histograms, and a linear classifier.

    Three passes over the data: filters of the first layer, filters of the second, classifier.

    Args:
        network: A preset (``'pcanet'``), a :class:`~lightning_nobp.nn.HashingNetwork`, or what builds one.
        classifier: ``'ridge'``, from sums, in memory that does not grow with the images, for networks with a
            ``sketch_dim``; ``'svm'``, scikit-learn's ``LinearSVC`` on all features, as in the paper; ``'dual_ridge'``,
            the same as ``'ridge'`` through a system of the number of images. The last two keep every image's features,
            and run on one process.
        ridge: Penalty per sample.
        svm_c: ``C`` of the support vector machine.
        seed: Of random filters.
        **kwargs: See :class:`ClosedFormRule`.

    Raises:
        ValueError: An argument outside its range.
        TypeError: The network is no HashingNetwork.

    References:
        Chan et al., "PCANet: A Simple Deep Learning Baseline for Image Classification?", arXiv 1404.3606.
    """

    presets: ClassVar[Mapping[str, NetworkFactory]] = {"pcanet": HashingNetwork}

    def __init__(
        self,
        *,
        network: str | nn.Module | NetworkFactory = "pcanet",
        classifier: Literal["ridge", "svm", "dual_ridge"] = "svm",
        ridge: float = 3e-3,
        svm_c: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if classifier not in ("ridge", "svm", "dual_ridge"):
            raise ValueError(f"classifier={classifier!r} is not one of 'ridge', 'svm', 'dual_ridge'")
        if not ridge > 0 or not svm_c > 0:
            raise ValueError(f"ridge={ridge} and svm_c={svm_c} must be positive")
        self.classifier, self.ridge, self.svm_c, self.seed = classifier, ridge, svm_c, seed
        super().__init__(network=network, **kwargs)

    def check_network(self, network: nn.Module) -> None:
        """Refuse another network, and normal equations that no memory would hold."""
        if not isinstance(network, HashingNetwork):
            raise TypeError(f"PCANet fits a HashingNetwork, not a {type(network).__name__}")
        super().check_network(network)
        count = network.readout.num_features
        if self.classifier == "ridge" and count > 20_000:
            raise ValueError(
                f"classifier='ridge' sums a matrix of {count} x {count} features: give the network a sketch_dim of a "
                "few thousand, or take classifier='svm'"
            )

    @property
    def _pcanet(self) -> HashingNetwork:
        return cast(HashingNetwork, self.built_network())

    @property
    def num_stages(self) -> int:
        """Three passes over the data."""
        return 3

    def restart(self) -> None:
        """Forget the classifier."""
        for parameter in self._pcanet.readout.parameters():
            nn.init.zeros_(parameter)

    def make_statistics(self) -> Mapping[str, SummedMetric]:
        """Patches for each layer's filters, then features."""
        if self.stage < 2:
            conv = self._conv()
            classes = cast(int, self.num_classes) if conv.filters == "lda" else 0
            return {"patches": PatchStatistics(conv.in_channels, conv.kernel_size, conv.padding, classes)}
        count = self._pcanet.readout.num_features
        if self.classifier == "ridge":
            return {"features": NormalEquations(count, cast(int, self.num_classes))}
        return {"features": FeatureRows(count)}

    def _conv(self) -> PCAConv2d:
        return self._pcanet.second if self.stage else self._pcanet.first

    def accumulate(self, batch: Any) -> Mapping[str, Tensor]:
        """Add images to the sums of the stage."""
        x, target = batch[:2]
        metric = self.statistic("features" if self.stage == 2 else "patches")
        for images, labels in zip(x.split(_CHUNK), target.split(_CHUNK), strict=True):
            if self.stage == 0:
                metric.update(images, labels)
            elif self.stage == 1:
                metric.update(self._pcanet.maps(images), labels.repeat_interleave(self._pcanet.channels[0]))
        if self.stage == 2:
            features = torch.cat([self._pcanet.features(images) for images in x.split(_CHUNK)])
            wanted = nn.functional.one_hot(target, cast(int, self.num_classes)).to(x.dtype)
            metric.update(features, wanted if self.classifier == "ridge" else target)
        return {}

    def solve(self) -> Mapping[str, float]:
        """Filters of a layer, or the classifier."""
        if self.stage < 2:
            moments, classes = self.statistic("patches").compute()
            generator = torch.Generator("cpu").manual_seed(self.seed + self.stage)
            self._conv().fit(moments, classes, generator)
            changed: nn.Module = self._conv()
            values = {"explained_variance": float(self._conv().explained_variance_ratio.sum())}
        else:
            found = self._classifier()
            self._pcanet.readout.fit(found)
            changed = self._pcanet.readout
            values = {"ridge": found.ridge, "weight_norm": float(found.weight.norm())}
        broadcast_from_main(changed.state_dict().values())
        return values

    def _classifier(self) -> LinearReadout:
        if self.classifier == "ridge":
            return ridge_solve(self.statistic("features").compute(), self.ridge)
        features, target = self.statistic("features").compute()
        # Of a single sample torchmetrics makes a scalar.
        target = target.reshape(-1)
        if self.classifier == "svm":
            return _linear_svm(features, target, cast(int, self.num_classes), self.svm_c)
        wanted = nn.functional.one_hot(target, cast(int, self.num_classes))
        return dual_ridge(torch.from_numpy(features.toarray()), wanted, self.ridge)

    def loss_function(self, scores: Tensor, target: Tensor) -> Tensor:
        """The squared error; of a support vector machine's margins the cross-entropy of their softmax."""
        if self.classifier == "svm":
            return nn.functional.cross_entropy(scores, target)
        return super().loss_function(scores, target)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Scores cut to what probabilities can be; of a support vector machine's margins the softmax."""
        return scores.softmax(-1) if self.classifier == "svm" else super().probabilities(scores)

    def on_fit_start(self) -> None:
        """Refuse several processes where features are kept."""
        if self.trainer.world_size > 1 and self.classifier != "ridge":
            raise MisconfigurationException(
                f"classifier={self.classifier!r} keeps every image's features, on one process: take classifier='ridge' "
                f"for {self.trainer.world_size} processes"
            )
        super().on_fit_start()


def _linear_svm(features: Any, target: Tensor, num_classes: int, c: float) -> LinearReadout:
    """scikit-learn's one-against-rest classifiers; a class that never occurs gets the lowest scores."""
    from sklearn.svm import LinearSVC

    classes = target.unique().tolist()  # type: ignore[no-untyped-call]
    if len(classes) < 2:
        raise ValueError(
            f"all {len(target)} training samples are of class {classes[0]}: classifier='svm' needs two classes, so "
            "check the labels, or take classifier='ridge'"
        )
    found = LinearSVC(C=c, dual="auto", random_state=0).fit(features, target.numpy())
    weight = torch.zeros(features.shape[1], num_classes, dtype=torch.float64)
    bias = torch.full((num_classes,), -1e3, dtype=torch.float64)
    coefficients, intercepts = torch.from_numpy(found.coef_), torch.from_numpy(found.intercept_)
    if len(found.classes_) == 2:
        coefficients, intercepts = (torch.cat([-t, t]) for t in (coefficients, intercepts))
    classes = torch.from_numpy(found.classes_)
    weight[:, classes], bias[classes] = coefficients.T.double(), intercepts.double()
    return LinearReadout(weight, bias, 0.0, 1.0)
