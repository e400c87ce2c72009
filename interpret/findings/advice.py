"""What the findings of each rule mean, what to look at next, and where in the report that stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advice:
    """What a reader does with a finding.

    Attributes:
        meaning: what follows from it, and what does not.
        next: what to look at, or to do, next.
        place: id of the report's section that shows it; a finding about a call points at the call's row or chapter.
        needs: what two runs must have in common for the rule to see anything: "activations", "maps" or "predictions".
    """

    meaning: str
    next: str
    place: str
    needs: str = ""


ADVICE: Mapping[str, Advice] = {
    # one run
    "non-finite-values": Advice(
        "Everything computed from these values is undefined, whatever the predictions look like.",
        "Look at the first call named: its weights, or a division or exponential in it; load an earlier checkpoint.",
        "overview",
    ),
    "preprocessing-mismatch": Advice(
        "The network may be fine and the audit may not: statistics, maps and predictions are of images it never saw.",
        "Compare mean, standard deviation, value range and size with those of the training; audit again.",
        "identity",
    ),
    "untrained-weights": Advice(
        "These look like weights before training: a load that failed silently, or the wrong file.",
        "Check which branch of the checkpoint was taken and that its names fit the model's.",
        "identity",
    ),
    "few-images": Advice(
        "Similarities and shares of so few images swing by chance.", "Audit with 32 images or more.", "identity"
    ),
    "zero-filters": Advice(
        "A zero filter computes nothing: pruned on purpose where they are many, dead after training where few.",
        "If nobody pruned the network, look at the layer's learning rate and weight decay.",
        "appendix",
    ),
    "dead-units": Advice(
        "These units are silent on the probe images; others may wake them.",
        "Compare with a run that works; audit with more varied images before calling a unit dead.",
        "overview",
    ),
    "near-zero-filters": Advice(
        "Sound networks have such filters: only a rise against another run says something.",
        "Compare the count with the reference's.",
        "appendix",
    ),
    "dominant-image": Advice(
        "Similarities at these calls are those of one image, not of the set.",
        "Look at that image; audit without it, and read the shared neighbours, which one image cannot move.",
        "overview",
    ),
    "maps-not-finite": Advice(
        "A gradient or an activation overflowed; these maps show nothing.",
        "Look for the first call with values that are not finite.",
        "explanations",
    ),
    "maps-no-better-than-controls": Advice(
        "A map that a centred blob equals does not show that the network looks where the map is bright.",
        "Use a method that beats both controls at this call.",
        "explanations",
    ),
    "maps-insensitive-to-weights": Advice(
        "Such maps show the image's edges or the architecture rather than what was learned.",
        "Use a method whose maps change with the weights.",
        "explanations",
    ),
    "maps-without-content": Advice(
        "Nothing at this call speaks for the class by this method: that is a result, and no picture.",
        "Take another layer, or a signed method.",
        "explanations",
    ),
    "maps-decided-by-a-constant": Advice(
        "The map depends on the scale of the logits, not on the network.",
        "Read another method at these calls.",
        "explanations",
    ),
    # a run and its reference
    "identical": Advice(
        "The two checkpoints are the same network, whatever their files look like.", "Nothing.", "overview"
    ),
    "equal-weights-other-outputs": Advice(
        "Something outside the checkpoint differs: code, library, device, or state that is not saved.",
        "Compare the environments in the table of provenance, and the code of the first call.",
        "identity",
        "activations",
    ),
    "same-function-other-weights": Advice(
        "The weights differ, and the network computes the same: a re-export, or reordered channels.",
        "Nothing for its behaviour; say in the records that the files differ.",
        "overview",
    ),
    "head-changed-only": Advice(
        "The features are those of the reference; only what is read out of them changed.",
        "Look at the predictions: similarities of representations hardly see a changed head.",
        "predictions",
    ),
    "batchnorm-statistics-changed": Advice(
        "What was learned is equal; what BatchNorm takes for usual is not, as after a forward in training mode.",
        "Check whether the running statistics were meant to be set anew, and on which data.",
        "overview",
    ),
    "one-unit-changed": Advice(
        "Whatever differs between the runs begins here; every later difference is its consequence.",
        "Look at this call's chapter: its kernels, its filters, and what its output became.",
        "chapters",
    ),
    "layers-stand-out": Advice(
        "What happened here did not happen to the others: damage, or a change on purpose.",
        "Look at this call's chapter, and ask what touched this layer alone.",
        "chapters",
    ),
    "zeroed-filters": Advice(
        "These filters compute nothing any more, and the next layer has lost its inputs from them.",
        "If this was pruning, compare the accuracy; if not, this file is damaged.",
        "chapters",
    ),
    "sparse-weights": Advice(
        "Weights were pruned one by one; the layers keep their shapes and most of their function.",
        "Compare the accuracy, and the flipped predictions.",
        "predictions",
    ),
    "changed-everywhere": Advice(
        "Training, noise, averaging or rounding touches all layers alike: no single one is to blame.",
        "Look at predictions and maps to see whether it matters.",
        "overview",
    ),
    "quantised-weights": Advice(
        "The weights were rounded to a few values per filter; the file may still hold floats.",
        "Look at the flipped predictions: they are the price.",
        "predictions",
    ),
    "architecture-differs": Advice(
        "These are two networks; changes of weights compare only where shapes agree.",
        "Read how the calls were paired, then similarity along the pairs, and the predictions.",
        "overview",
    ),
    "predictions-changed": Advice(
        "The behaviour changed on these images; the interval says what that allows to say of others.",
        "Look at the flipped images and at the maps of both runs.",
        "predictions",
        "predictions",
    ),
    "flips-though-alike": Advice(
        "Representations agree, and decisions do not: the images lie near the boundary, or the head moved.",
        "Look at how sure the reference was of the flipped images.",
        "predictions",
        "predictions",
    ),
    "where-flips-begin": Advice(
        "From this call on these images are treated unlike the rest.",
        "Look at this call's activations.",
        "predictions",
        "predictions",
    ),
    "silent-units-appeared": Advice(
        "Capacity was lost: these units no longer tell images apart.",
        "Look at the weights and the normalization of the call named.",
        "overview",
        "activations",
    ),
    "maps-moved": Advice(
        "The network rests its answer on other places than before; with equal accuracy that can still be a shortcut.",
        "Look at the maps of both runs over the photos: are they still on the object?",
        "predictions",
        "maps",
    ),
    "first-difference": Advice(
        "Upstream of this call the runs are one network on these images.",
        "Look at this call's weights, or the code before it.",
        "chapters",
        "activations",
    ),
    "least-similar": Advice(
        "This is where the effect is largest, not where its cause lies.",
        "Look at the first divergence and the changed weights for the cause.",
        "overview",
        "activations",
    ),
    "few-common-images": Advice(
        "Numbers of so few images swing by chance.", "Audit both runs on the same 32 images or more.", "identity"
    ),
    "probe-mismatch": Advice(
        "Activations, maps and predictions compare only as far as the images are the same.",
        "Freeze the images with `interpret probe`, and audit both runs on them.",
        "identity",
    ),
    "not-compared": Advice("This part of the comparison is missing.", "See the reason in the sentence.", "method"),
}
