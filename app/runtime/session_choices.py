"""Session options from a model's settings: optimization, providers, custom operators."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from app.errors import shortened
from app.runtime.operator_libraries import keep_loaded

CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"
Optimization = Literal["disabled", "basic", "extended", "all"]
_LEVELS: dict[Optimization, ort.GraphOptimizationLevel] = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@dataclass(frozen=True)
class SessionChoices:
    """Options of one session.

    Attributes:
        optimization: Graph optimization level; None for onnxruntime's default, which is all.
        providers: Execution providers in order of preference; empty for those of the server's device.
        custom_ops: Paths of shared libraries with operators to register.
    """

    optimization: Optimization | None = None
    providers: tuple[str, ...] = ()
    custom_ops: tuple[str, ...] = ()

    def apply(self, options: ort.SessionOptions) -> None:
        """Apply the options to a session.

        Raises:
            ValueError: A library cannot be loaded, or was replaced after it was loaded.
        """
        if self.optimization is not None:
            options.graph_optimization_level = _LEVELS[self.optimization]
        for library in self.custom_ops:
            try:
                keep_loaded(library)
                options.register_custom_ops_library(library)
            except Exception as error:  # onnxruntime raises many kinds
                why = shortened(str(error).strip())
                raise ValueError(f"custom_ops: {Path(library).name} can't be registered: {why}") from error

    @staticmethod
    def level_of(session: ort.InferenceSession) -> Optimization:
        """The optimization level of a session's graph, as the session reports it."""
        level = session.get_session_options().graph_optimization_level
        return next(name for name, known in _LEVELS.items() if known == level)

    def open(self, source: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
        """Open a session on the chosen providers, and on the CPU for nodes that they do not support.

        Raises:
            ValueError: The first provider failed to start.
        """
        wanted = [*self.providers, *([] if CPU in self.providers else [CPU])]
        session = ort.InferenceSession(source, options, providers=wanted)
        session.disable_fallback()
        if self.providers[0] not in session.get_providers():
            raise ValueError(
                f"session.providers: {self.providers[0]} could not be started; its libraries may be missing"
            )
        return session


AS_IT_COMES = SessionChoices()
"""The options of a model without settings: onnxruntime's defaults, on the server's device."""


def known_providers(names: Sequence[str]) -> tuple[str, ...]:
    """Full names of execution providers.

    Args:
        names: Full, or without "ExecutionProvider", in any case: ``openvino``, ``CPU``.

    Raises:
        ValueError: A provider is not installed; the message lists the installed ones.
    """
    installed = ort.get_available_providers()
    by_name = {provider.removesuffix(_SUFFIX).lower(): provider for provider in installed}
    found = []
    for name in names:
        provider = by_name.get(name.removesuffix(_SUFFIX).lower())
        if provider is None:
            there = ", ".join(installed)
            raise ValueError(f"session.providers: {name!r} is not installed; this onnxruntime has: {there}")
        found.append(provider)
    return tuple(dict.fromkeys(found))
