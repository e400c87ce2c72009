"""What the findings of each rule mean, what to look at next, and where in the report that stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from interpret.language import Message, say


@dataclass(frozen=True, slots=True)
class Advice:
    """What a reader does with a finding.

    Attributes:
        meaning: what follows from it, and what does not.
        next: what to look at, or to do, next.
        place: id of the report's section that shows it; a finding about a call points at the call's row or chapter.
        needs: what two runs must have in common for the rule to see anything: "activations", "maps" or "predictions".
    """

    meaning: Message
    next: Message
    place: str
    needs: str = ""


ADVICE: Mapping[str, Advice] = {
    # one run
    "non-finite-values": Advice(
        say("Everything computed from these values is undefined, whatever the predictions look like."),
        say(
            "Look at the first call named: its weights, or a division or exponential in it; load an earlier checkpoint."
        ),
        "overview",
    ),
    "preprocessing-mismatch": Advice(
        say(
            "The network may be fine and the audit may not: statistics, maps and predictions are of images it never "
            "saw."
        ),
        say("Compare mean, standard deviation, value range and size with those of the training; audit again."),
        "identity",
    ),
    "untrained-weights": Advice(
        say("These look like weights before training: a load that failed silently, or the wrong file."),
        say("Check which branch of the checkpoint was taken and that its names fit the model's."),
        "identity",
    ),
    "few-images": Advice(
        say("Similarities and shares of so few images swing by chance."),
        say("Audit with 32 images or more."),
        "identity",
    ),
    "zero-filters": Advice(
        say("A zero filter computes nothing: pruned on purpose where they are many, dead after training where few."),
        say("If nobody pruned the network, look at the layer's learning rate and weight decay."),
        "appendix",
    ),
    "dead-units": Advice(
        say("These units are silent on the probe images; others may wake them."),
        say("Compare with a run that works; audit with more varied images before calling a unit dead."),
        "overview",
    ),
    "near-zero-filters": Advice(
        say("Sound networks have such filters: only a rise against another run says something."),
        say("Compare the count with the reference's."),
        "appendix",
    ),
    "dominant-image": Advice(
        say("Similarities at these calls are those of one image, not of the set."),
        say("Look at that image; audit without it, and read the shared neighbours, which one image cannot move."),
        "overview",
    ),
    "maps-not-finite": Advice(
        say("A gradient or an activation overflowed; these maps show nothing."),
        say("Look for the first call with values that are not finite."),
        "explanations",
    ),
    "maps-no-better-than-controls": Advice(
        say("A map that a centred blob equals does not show that the network looks where the map is bright."),
        say("Use a method that beats both controls at this call."),
        "explanations",
    ),
    "maps-insensitive-to-weights": Advice(
        say("Such maps show the image's edges or the architecture rather than what was learned."),
        say("Use a method whose maps change with the weights."),
        "explanations",
    ),
    "maps-without-content": Advice(
        say("Nothing at this call speaks for the class by this method: that is a result, and no picture."),
        say("Take another layer, or a signed method."),
        "explanations",
    ),
    "maps-decided-by-a-constant": Advice(
        say("The map depends on the scale of the logits, not on the network."),
        say("Read another method at these calls."),
        "explanations",
    ),
    # a run and its reference
    "identical": Advice(
        say("The two checkpoints are the same network, whatever their files look like."), say("Nothing."), "overview"
    ),
    "equal-weights-other-outputs": Advice(
        say("Something outside the checkpoint differs: code, library, device, or state that is not saved."),
        say("Compare the environments in the table of provenance, and the code of the first call."),
        "identity",
        "activations",
    ),
    "same-function-other-weights": Advice(
        say("The weights differ, and the network computes the same: a re-export, or reordered channels."),
        say("Nothing for its behaviour; say in the records that the files differ."),
        "overview",
    ),
    "head-changed-only": Advice(
        say("The features are those of the reference; only what is read out of them changed."),
        say("Look at the predictions: similarities of representations hardly see a changed head."),
        "predictions",
    ),
    "batchnorm-statistics-changed": Advice(
        say("What was learned is equal; what BatchNorm takes for usual is not, as after a forward in training mode."),
        say("Check whether the running statistics were meant to be set anew, and on which data."),
        "overview",
    ),
    "one-unit-changed": Advice(
        say("Whatever differs between the runs begins here; every later difference is its consequence."),
        say("Look at this call's chapter: its kernels, its filters, and what its output became."),
        "chapters",
    ),
    "layers-stand-out": Advice(
        say("What happened here did not happen to the others: damage, or a change on purpose."),
        say("Look at this call's chapter, and ask what touched this layer alone."),
        "chapters",
    ),
    "zeroed-filters": Advice(
        say("These filters compute nothing any more, and the next layer has lost its inputs from them."),
        say("If this was pruning, compare the accuracy; if not, this file is damaged."),
        "chapters",
    ),
    "sparse-weights": Advice(
        say("Weights were pruned one by one; the layers keep their shapes and most of their function."),
        say("Compare the accuracy, and the flipped predictions."),
        "predictions",
    ),
    "changed-everywhere": Advice(
        say("Training, noise, averaging or rounding touches all layers alike: no single one is to blame."),
        say("Look at predictions and maps to see whether it matters."),
        "overview",
    ),
    "quantised-weights": Advice(
        say("The weights were rounded to a few values per filter; the file may still hold floats."),
        say("Look at the flipped predictions: they are the price."),
        "predictions",
    ),
    "architecture-differs": Advice(
        say("These are two networks; changes of weights compare only where shapes agree."),
        say("Read how the calls were paired, then similarity along the pairs, and the predictions."),
        "overview",
    ),
    "predictions-changed": Advice(
        say("The behaviour changed on these images; the interval says what that allows to say of others."),
        say("Look at the flipped images and at the maps of both runs."),
        "predictions",
        "predictions",
    ),
    "flips-though-alike": Advice(
        say("Representations agree, and decisions do not: the images lie near the boundary, or the head moved."),
        say("Look at how sure the reference was of the flipped images."),
        "predictions",
        "predictions",
    ),
    "where-flips-begin": Advice(
        say("From this call on these images are treated unlike the rest."),
        say("Look at this call's activations."),
        "predictions",
        "predictions",
    ),
    "silent-units-appeared": Advice(
        say("Capacity was lost: these units no longer tell images apart."),
        say("Look at the weights and the normalization of the call named."),
        "overview",
        "activations",
    ),
    "maps-moved": Advice(
        say(
            "The network rests its answer on other places than before; with equal accuracy that can still be a "
            "shortcut."
        ),
        say("Look at the maps of both runs over the photos: are they still on the object?"),
        "predictions",
        "maps",
    ),
    "first-difference": Advice(
        say("Upstream of this call the runs are one network on these images."),
        say("Look at this call's weights, or the code before it."),
        "chapters",
        "activations",
    ),
    "least-similar": Advice(
        say("This is where the effect is largest, not where its cause lies."),
        say("Look at the first divergence and the changed weights for the cause."),
        "overview",
        "activations",
    ),
    "few-common-images": Advice(
        say("Numbers of so few images swing by chance."),
        say("Audit both runs on the same 32 images or more."),
        "identity",
    ),
    "probe-mismatch": Advice(
        say("Activations, maps and predictions compare only as far as the images are the same."),
        say("Freeze the images with `interpret probe`, and audit both runs on them."),
        "identity",
    ),
    "not-compared": Advice(
        say("This part of the comparison is missing."), say("See the reason in the sentence."), "method"
    ),
}
