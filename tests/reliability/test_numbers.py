"""Numbers that are none, or that do not fit.

Small trainings of every rule meet what data and arithmetic may hold: nan and infinity in one input, target, weight or
gradient, or as the loss; inputs that are much too small or too large, constant, zero, of another type than the
weights; no samples, one, or one a batch; one class only, a thousand classes, and labels that there are not. What is
wrong with one sample is wrong in the second batch. A training may end with weights and metrics that are all finite;
or with an error that says what was wrong and what to do, raised on purpose and not somewhere in torch, with the
weights as they were before that step; or with a warning that a validation is not finite. The tables count these. With
``on_nonfinite='skip'`` trainings must end with finite weights, the steps in question left out. Validation, test and
prediction must come to an end, or refuse what they are given.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from every_rule import TRAININGS, Training
from hazards import HAZARDS, SKIPPED, evaluate, train, value_of

pytestmark = pytest.mark.reliability

OUTCOMES = ("finite", "refused", "warned")


def counted(outcomes: list[str]) -> dict[str, int]:
    kinds = [outcome.partition(":")[0] for outcome in outcomes]
    assert set(kinds) <= set(OUTCOMES)
    return {kind: kinds.count(kind) for kind in OUTCOMES}


def said(outcomes: list[str]) -> str:
    """The refusal that was given most often, cut short."""
    refusals = [outcome.partition(": ")[2] for outcome in outcomes if ":" in outcome]
    most = max(refusals, key=refusals.count, default="")
    return most if len(most) < 80 else most[:77].rstrip() + "..."


def applies(hazard: str, training: Training) -> bool:
    return HAZARDS[hazard].applies(training)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """What came of a training that met a hazard; each is tried once."""
    folder = tmp_path_factory.mktemp("numbers")
    return cache(lambda name, hazard: train(name, hazard, folder))


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings_end_finite_or_say_why_not(name, count, outcome):
    found = [outcome(name, hazard) for hazard in HAZARDS if applies(hazard, TRAININGS[name])]
    count("Trainings, by rule", training=name, hazards=len(found), **counted(found))


@pytest.mark.parametrize("hazard", HAZARDS)
def test_what_is_said_of_a_hazard(hazard, count, outcome):
    found = [outcome(name, hazard) for name, training in TRAININGS.items() if applies(hazard, training)]
    count("Trainings, by hazard", hazard=hazard, trainings=len(found), **counted(found), said=said(found))


@pytest.mark.parametrize("name", TRAININGS)
def test_what_is_not_finite_can_be_skipped(name, tmp_path, count):
    hazards = [hazard for hazard in SKIPPED if applies(hazard, TRAININGS[name])]
    for hazard in hazards:
        assert train(name, hazard, tmp_path, on_nonfinite="skip") == "finite", hazard
    count("Trainings that skip", training=name, hazards=len(hazards), finite=len(hazards))


@pytest.mark.parametrize("name", TRAININGS)
def test_validation_test_and_prediction_come_to_an_end(name, tmp_path: Path, count):
    found = [
        evaluate(name, stage, value_of(value), tmp_path)
        for stage in ("validate", "test", "predict")
        for value in ("nan", "inf", "-inf")
    ]
    count("Validation, test and prediction", training=name, runs=len(found), ran=found.count("ran"), said=said(found))
