"""Audits from inside a training, which goes on as if there had been none.

:class:`Auditor` is called from a loop of one's own; :class:`AuditCallback` calls it from Lightning's.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import operator
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import ImageFile
from torch import Tensor, nn

from interpret import auditing, publishing
from interpret.errors import InterpretError, did_you_mean
from interpret.evidence import Evidence
from interpret.functional.cam import check_methods
from interpret.images import ProbeImages
from interpret.tracing import unwrap

logger = logging.getLogger("interpret")

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")  # the same package under its two names
OWN = (
    "model",
    "images",
    "out",
    "targets",
    "device",
    "progress",
    "checkpoint",
    "command",
    "step",
)  # the auditor gives these
SHARDED = {"FullyShardedDataParallel", "FSDPModule"}


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """What became of one audit.

    Attributes:
        step: of the training.
        status: "complete"; "partial" where a collector failed, which the manifest explains; "failed".
        run_id: the MLflow run that holds the audit, or that is marked as failed; None where there is none.
        folder: the evidence bundle; None where none is kept.
        message: why it failed; empty otherwise.
    """

    step: int
    status: str
    run_id: str | None = None
    folder: Path | None = None
    message: str = ""


class Auditor:
    """Audits of one network at some of its training steps; call it in the loop with the model and the step.

    Each audit is a run of its own, a child of the training's run where there is one, and carries its step, so
    `interpret report RUN RUN ...` of them is a timeline. Nothing of the training changes: weights, gradients (also
    between forward and backward), optimizer, buffers, training flags, hooks, random states. A failing audit is logged
    as one warning and recorded; the training goes on. Of several processes (DDP) the first audits alone.

    Args:
        images: what to audit on, as :func:`interpret.audit` takes it.
        every: an audit at every step that is a multiple of it; where steps are skipped, at the next one.
        out: folder for the evidence of all audits, one `step-NNNNNNNN` for each; None for temporary ones.
        publish: False makes no runs and keeps the evidence in `out` alone.
        targets: "first" explains in all audits the classes predicted in the first one, so that maps compare; else as
            for :func:`interpret.audit`.
        strict: raise what made an audit fail.
        tracking_uri: None takes MLflow's own default.
        experiment: name; None takes the parent run's, else MLflow's own default.
        parent_run_id: the training's run; None takes MLflow's active run, if there is one.
        run_name: what the runs are called, followed by their step; None takes the network's class.
        formats: of the report in each run, "html" and "pdf".
        options: of :func:`interpret.audit`: methods, layers, trust, names, labels, class_names, batch_size, ...

    Attributes:
        records: what became of each audit so far, in order.

    Raises:
        InterpretError: an argument cannot be used.

    >>> auditor = Auditor(torch.zeros(4, 1, 8, 8), every=100, publish=False, out="audits", methods=["grad-cam"])
    >>> auditor.records
    []
    """

    def __init__(
        self,
        images: ProbeImages | Tensor | str | Path | Sequence[str | Path],
        every: int = 1,
        *,
        out: str | Path | None = None,
        publish: bool = True,
        targets: Any = "first",
        strict: bool = False,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        parent_run_id: str | None = None,
        run_name: str | None = None,
        formats: Sequence[str] = ("html",),
        **options: Any,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InterpretError(f"every={every!r} is no number of steps; give 1 or more")
        if not publish and out is None:
            raise InterpretError("publish=False keeps evidence in a folder alone; say which with out=...")
        _check_options(options)
        self.images = images
        self.every = every
        self.out = None if out is None else Path(out)
        self.publish = publish
        self.targets = targets
        self.strict = strict
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.parent_run_id = parent_run_id
        self.run_name = run_name
        self.formats = tuple(formats)
        self.options = options
        self.records: list[AuditRecord] = []
        self._first: Evidence | None = None
        self._seen: int | None = None

    @property
    def run_ids(self) -> list[str]:
        """The runs that hold audits, in order: what `interpret report` takes for a timeline."""
        return [record.run_id for record in self.records if record.run_id and record.status != "failed"]

    def __call__(self, model: nn.Module, step: int) -> AuditRecord | None:
        """Audit the model if it is time.

        Args:
            model: the network in training; DDP's and `torch.compile`'s wrappers may be around it.
            step: how far the training is, 0 or more: optimizer steps or epochs, whatever the loop counts.

        Returns:
            What became of the audit; None where there was none.
        """
        step = _step(step)
        before = step - 1 if self._seen is None or step < self._seen else self._seen  # lower: another training
        self._seen = step
        return self.audit(model, step) if step // self.every != before // self.every else None

    def audit(self, model: nn.Module, step: int) -> AuditRecord | None:
        """Audit the model now, whatever `every` says: before the first step, and after the last.

        Returns:
            What became of it; None in other processes than the first, and where the last audit was of this same step.
        """
        step = _step(step)
        if _rank() > 0 or (self.records and self.records[-1].step == step):
            return None
        with _aside(model):
            record, error = self._attempt(model, step)
        self.records.append(record)
        if error is None:
            logger.info("audit at step %d is %s: %s", step, record.status, record.run_id or record.folder)
        elif self.strict:
            raise error
        else:
            logger.warning("the audit at step %d failed, the training goes on: %s", step, record.message)
        return record

    def _attempt(self, model: nn.Module, step: int) -> tuple[AuditRecord, Exception | None]:
        folder = None if self.out is None else self.out / f"step-{step:08d}"
        place = self._place(f"{self.run_name or type(unwrap(model)).__name__} step {step}")
        evidence: Evidence | None = None
        try:
            _refuse_sharded(model)
            evidence = auditing.audit(model, self.images, folder, targets=self._targets(), step=step, **self.options)
            run_id = None
            if self.publish:
                run_id = publishing.publish(evidence, force=True, formats=self.formats, **place)
            return AuditRecord(step, evidence.manifest.status, run_id, folder), None
        except Exception as error:  # whatever it is: hours of training weigh more than one audit
            message = f"{type(error).__name__}: {error}"
            if evidence is not None:  # publishing failed, and has marked its run
                return AuditRecord(step, "failed", None, folder, message), error
            run_id = publishing.log_failure(error, step=step, **place) if self.publish else None
            return AuditRecord(step, "failed", run_id, None, message), error
        finally:
            if evidence is not None:
                self._keep_targets(evidence)

    def _targets(self) -> Any:
        if isinstance(self.targets, str) and self.targets == "first":
            return self._first or "predicted"
        return self.targets

    def _keep_targets(self, evidence: Evidence) -> None:
        if self._first is None and evidence.has("maps", "targets"):
            self._first = evidence
        else:
            evidence.close()

    def _place(self, run_name: str) -> dict[str, Any]:
        return {
            "tracking_uri": self.tracking_uri,
            "experiment": self.experiment,
            "run_name": run_name,
            "parent_run_id": self.parent_run_id or _active_run_id(self.tracking_uri),
        }


def _check_options(options: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(auditing.audit).parameters if name not in OWN]
    for name in options:
        if name == "device":
            raise InterpretError("device cannot be chosen: the network is audited where it trains")
        if name not in known:
            raise InterpretError(f"unknown option {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    if "methods" in options:
        check_methods(options["methods"], auditing.METHODS)


def _step(step: int) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if number < 0:
        raise InterpretError(f"step {step!r} is no step of a training; give a whole number, 0 or more")
    return number


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _refuse_sharded(model: nn.Module) -> None:
    """Refuse networks whose weights lie in several processes: one alone would wait for the others for ever."""
    for name, module in model.named_modules():
        if SHARDED & {kind.__name__ for kind in type(module).__mro__}:
            raise InterpretError(
                f"the weights of {name or type(module).__name__!r} are sharded over processes (FSDP), and the first "
                "one audits alone; audit the saved checkpoints instead"
            )
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise InterpretError("DeepSpeed has partitioned the weights; audit the saved checkpoints instead")


def _active_run_id(tracking_uri: str | None) -> str | None:
    """Id of the run that this thread has started by `mlflow.start_run` in this store; mlflow is not imported for it."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or tracking_uri not in (None, mlflow.get_tracking_uri()):
        return None
    run = mlflow.active_run()
    return None if run is None else str(run.info.run_id)


@contextmanager
def _aside(model: nn.Module) -> Iterator[None]:
    """What :func:`interpret.hooks.undisturbed` does not know of, as before on leaving.

    Publishing may draw random numbers (MLflow does for names), and seeding reaches devices that the network is not on;
    mixed precision may be on around the loop; WeasyPrint changes how Pillow reads truncated files.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (the user's global state)
    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    kinds = {parameter.device.type for parameter in model.parameters()}
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=devices))
            for kind in kinds:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


class AuditCallback:
    """A Lightning callback that audits at some epochs or steps: ``Trainer(callbacks=[AuditCallback(images)])``.

    It works with `lightning.pytorch` and `pytorch_lightning` alike. Runs become children of the run of the trainer's
    MLFlowLogger where it has one. Steps are the trainer's `global_step`, also of audits by epochs.

    Args:
        images: what to audit on, as :func:`interpret.audit` takes it.
        every: "epoch", "5 epochs", "step" or "100 steps".
        first: also before the first step.
        last: also after the last step.
        network: dotted name of the part of the LightningModule to audit; empty for the module itself, which then needs
            a `forward` that takes a batch of images.
        options: see :class:`Auditor`.

    Attributes:
        auditor: the :class:`Auditor`, with the records of its audits.

    Raises:
        InterpretError: an argument cannot be used, or Lightning is not installed.
    """

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """An instance of this class and of Lightning's Callback, which is only imported now."""
        return object.__new__(_joined(cls, _callback_classes()))

    def __init__(
        self,
        images: ProbeImages | Tensor | str | Path | Sequence[str | Path],
        every: str = "epoch",
        *,
        first: bool = True,
        last: bool = True,
        network: str = "",
        **options: Any,
    ) -> None:
        match = re.fullmatch(r"(?:([1-9]\d*) )?(epoch|step)s?", every) if isinstance(every, str) else None
        if match is None:
            raise InterpretError(f"every={every!r} is no interval; write 'epoch', '5 epochs' or '100 steps'")
        self.number, self.unit = int(match[1] or 1), match[2]
        self.first, self.last, self.network = first, last, network
        self.auditor = Auditor(images, self.number if self.unit == "step" else 1, **options)
        self._given = self.auditor.tracking_uri, self.auditor.parent_run_id

    def __reduce__(self) -> tuple[Any, ...]:
        """For processes that are spawned: the joined class has no name to be found by."""
        return _restored, (type(self).__bases__[0],), vars(self)

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Refuse a network that is not there before the training begins."""
        self._network(pl_module)

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Audit before the first step."""
        if trainer.is_global_zero and self.auditor.publish:
            self._follow(trainer)
        if self.first:
            self._audit(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Audit if it is time by steps; while gradients accumulate there has been no step yet."""
        if self.unit == "step" and trainer.global_step > 0 and trainer.is_global_zero:
            self.auditor(self._network(pl_module), trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Audit if it is time by epochs."""
        if self.unit == "epoch" and (trainer.current_epoch + 1) % self.number == 0:
            self._audit(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Audit after the last step."""
        if self.last:
            self._audit(trainer, pl_module)

    def _audit(self, trainer: Any, pl_module: nn.Module) -> None:
        if trainer.is_global_zero:
            self.auditor.audit(self._network(pl_module), trainer.global_step)

    def _network(self, pl_module: nn.Module) -> nn.Module:
        try:
            return pl_module.get_submodule(self.network)
        except AttributeError as error:
            known = [name for name, _ in pl_module.named_modules() if name]
            raise InterpretError(
                f"network={self.network!r} is no part of {type(pl_module).__name__}"
                f"{did_you_mean(self.network, known)}; give the name of one of its modules"
            ) from error

    def _follow(self, trainer: Any) -> None:
        """Put the audits below the run of the trainer's MLFlowLogger, unless another place was given."""
        tracking_uri, parent_run_id = self._given
        for log in trainer.loggers if parent_run_id is None else ():
            if "MLFlowLogger" in {kind.__name__ for kind in type(log).__mro__}:
                store = log.experiment.tracking_uri
                if tracking_uri in (None, store):
                    tracking_uri, parent_run_id = store, log.run_id
                    break
        self.auditor.tracking_uri, self.auditor.parent_run_id = tracking_uri, parent_run_id


def _callback_classes() -> tuple[type, ...]:
    """Lightning's Callback, under each name that is in use; the one that is installed where none is yet."""
    names = [name for name in LIGHTNING if name in sys.modules]
    names = names or [name for name in LIGHTNING if importlib.util.find_spec(name.partition(".")[0])][:1]
    if not names:
        raise InterpretError(
            "AuditCallback needs Lightning (`pip install lightning`); in a loop of your own use interpret's Auditor"
        )
    return tuple(importlib.import_module(name).Callback for name in names)


def _joined(cls: type, callbacks: tuple[type, ...]) -> type:
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls, *callbacks), names)


def _restored(cls: type[AuditCallback]) -> AuditCallback:
    return cls.__new__(cls)
