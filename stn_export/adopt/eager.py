"""Where a module samples, seen while it runs: for modules that ``torch.export`` cannot capture."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stn_export.program.sites import MODES, PADDINGS, Site
from stn_export.program.state import Copies, answer

SAMPLERS = (F.grid_sample, torch.grid_sampler)
AFFINE = (F.affine_grid, torch.affine_grid_generator)
TORCH = f"{Path(torch.__file__).parent}/"


class Watch(TorchFunctionMode):
    """Notes every sampler that runs inside it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {id(part): name for name, part in module.named_modules()}
        self.grids: list[tuple[Tensor, bool]] = []  # of affine_grid, with its align_corners
        self.sites: list[Site] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in AFFINE:
            self.grids.append((result, bool(_bound(args, kwargs, ("theta", "size", "align_corners"))[2])))
        elif func in SAMPLERS:
            image, grid, mode, padding, align = _bound(
                args, kwargs, ("input", "grid", "mode", "padding_mode", "align_corners")
            )
            own = next((align for made, align in self.grids if made is grid), None)
            site = Site(
                name=f"site{len(self.sites)}",
                where=self._where(sys._getframe(1)),
                source="",
                mode=_word(mode, MODES),
                padding_mode=_word(padding, PADDINGS),
                align_corners=bool(align),
                grid_align_corners=own,
                image_shape=tuple(image.shape),
                warped_shape=tuple(result.shape),
                image="",
                grid="",
                warped="",
                theta="" if own is None else "theta",
            )
            self.sites.append(site)
        return result

    def _where(self, frame: FrameType | None) -> str:
        """The innermost line outside PyTorch, and the module that it runs in."""
        place, module = "", None
        while frame is not None and module is None:
            file = frame.f_code.co_filename
            if not place and not file.startswith(TORCH) and file != __file__:
                place = f" ({Path(file).name}:{frame.f_lineno})"
            module = self.names.get(id(frame.f_locals.get("self")))
            frame = frame.f_back
        return f"{module or 'forward'}{place}"


def _bound(args: Sequence[Any], kwargs: Mapping[str, Any] | None, names: Sequence[str]) -> list[Any]:
    given = dict(zip(names, args, strict=False)) | dict(kwargs or {})
    return [given.get(name) for name in names]


def _word(value: str | int | None, words: Sequence[str]) -> str:
    return words[value] if isinstance(value, int) else value or words[0]


def watched(module: nn.Module, values: Sequence[Tensor]) -> tuple[Site, ...]:
    """Every sampler that runs when a copy of the module does, in order; shapes are those of these inputs.

    Raises:
        UserError: where the module itself fails.
    """
    with Copies(module).fresh() as made, Watch(made) as watch:
        answer(made, (tuple(values), {}))
    return tuple(watch.sites)
