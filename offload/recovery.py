"""Recovery: a model whose device has failed is opened again."""

from __future__ import annotations

import logging
from dataclasses import replace

from offload.config import ModelConfig
from offload.errors import DeviceError, OffloadError
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.hardware import probe
from offload.kv_slots import KVRows, KVSlots
from offload.loading import because, execute
from offload.plan import Plan
from offload.plan_options import PlanOptions
from offload.planning import plan_model
from offload.read_ahead import ReadAhead
from offload.vram import PAGE

log = logging.getLogger(__name__)


class Recovery:
    """Of one engine. options: what was asked for when it was loaded.

    plan, ahead: of the model as it is open now.
    """

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        options: PlanOptions,
        plan: Plan,
        ahead: ReadAhead,
    ) -> None:
        self.plan = plan
        self.ahead = ahead
        self._file = file
        self._config = config
        self._options = options
        self._was_tried = False

    def open(self, lost: DeviceError) -> tuple[Model, KVSlots]:
        """On the same GPU, once, if it takes the model again; else on the CPU. OffloadError.

        The context and all else that answers depend on stays.
        """
        self.ahead.close()
        self.plan, model, self.ahead = self._again(lost)
        return model, slots_of(model.kv, self.plan)

    def _again(self, lost: DeviceError) -> tuple[Plan, Model, ReadAhead]:
        failed, why = self.plan, f"the device failed: {lost}"
        if failed.vram is not None and not self._was_tried:
            self._was_tried = True
            try:
                made = self._execute(failed, f"opened again; {why}")
            except OffloadError as exc:
                why = f"{why}; opened again: {exc}"
            else:
                log.warning("%s; the model is opened again there", why)
                return made
        kv = failed.kv
        made = self._execute(
            replace(
                self._options,
                device="cpu",
                context=kv.context,
                kv_tokens=kv.tokens,
                kv_type=kv.kv_type,
                chunk=failed.chunk,
            ),
            f"{why}: runs on the CPU",
        )
        log.warning("%s; the model runs on the CPU from now on", why)
        return made

    def _execute(self, wish: Plan | PlanOptions, why: str) -> tuple[Plan, Model, ReadAhead]:
        hardware = probe()
        plan = plan_model(self._file, self._config, wish, hardware)
        return execute(self._file, self._config, because(plan, why), hardware, lambda _: None)


def slots_of(kv: KVRows, plan: Plan) -> KVSlots:
    """The slots of a KV cache that is as the plan has it."""
    return KVSlots(kv, plan.kv.tokens, PAGE if plan.vram is not None else 1)
