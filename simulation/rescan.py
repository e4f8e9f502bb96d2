"""Scenes scanned anew in torch, on any device: the same patient with another scanner's contrast, coils, k-space and noise.

After SynthSeg (Billot et al. 2023, doi:10.1016/j.media.2023.102789): anatomy is drawn once, and a network in training sees
it in another image at every step. What has a value per pixel runs on the device, in `reception`'s own functions; what is small
(signals of 16 tissues, windows, lines, a coarse coil field) is numpy's, in the same functions and from the same chances as in
`scanner.scan`. Enlarging the coils' field is torch's own interpolation, and partial volume stands in the scene's shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from simulation import reception
from simulation.reception import Cut, Cuts, Library, Lines
from simulation.scanner import Scanner, contrast, is_signed
from simulation.scene import Scene
from simulation.tissue import Tissue

TORCH: Library[torch.Tensor] = Library(torch.exp, torch.fft.fft2, torch.fft.ifft2)
Noise = Callable[[tuple[int, ...]], torch.Tensor]
"""Complex noise of k-space of this shape, with standard deviation 1 in either channel, on the device."""


@dataclass(frozen=True, eq=False)
class Exposure:
    """One scan of a scene, drawn and not yet taken."""

    scene: Scene
    scanner: Scanner
    signal: npt.NDArray[np.float32]  # of the scene's shares, (codes,)
    reference: float
    cuts: Cuts
    lines: Lines

    @property
    def kind(self) -> tuple[object, ...]:
        """What scans must have in common to be taken in one batch."""
        shape = self.scene.grid.shape
        return (*shape, is_signed(self.scanner, self.scene.series), self.cuts.eddies is None, self.cuts.bands is None)


def expose(scene: Scene, scanner: Scanner, rng: np.random.Generator) -> Exposure:
    """Draw a scan of this scene: contrast, textures and ghosts, in the order in which `scanner.scan` draws them."""
    scanner = scene.on(scanner)
    table, axis, muscle, _ = contrast(scene.patient, scanner, scene.series, rng)
    signals = np.concatenate([table, np.interp(scene.ecv, axis, muscle).astype(np.float32)])
    reference = float(abs(table[Tissue.BLOOD]))
    cuts = reception.draw_cuts(scanner, scene.code.shape, rng, blood=scene.series != "lge")
    lines = reception.draw_lines(scanner, scene.code.shape, reference, rng)
    return Exposure(scene, scanner, (scene.shares * signals).sum(axis=1), reference, cuts, lines)


def noise_from(generator: torch.Generator) -> Noise:
    """Noise from this generator, on its device."""

    def noise(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.view_as_complex(torch.randn(*shape, 2, generator=generator, device=generator.device))

    return noise


def take(exposures: Sequence[Exposure], noise: Noise, device: torch.device) -> list[torch.Tensor]:
    """The images: grey values (slices, rows, columns) float32, whole numbers to 65535. One batch for each kind."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for n, exposure in enumerate(exposures):
        kinds.setdefault(exposure.kind, []).append(n)
    images: dict[int, torch.Tensor] = {}
    for members in kinds.values():
        batch = [exposures[n] for n in members]
        taken = torch.split(_take(batch, noise, device), [len(one.scene.code) for one in batch])
        images.update(zip(members, taken, strict=True))
    return [images[n] for n in range(len(exposures))]


def _take(batch: Sequence[Exposure], noise: Noise, device: torch.device) -> torch.Tensor:
    """One kind of scans, their slices one after another."""
    counts = torch.tensor([len(one.scene.code) for one in batch])

    def each(values: Sequence[float]) -> torch.Tensor:
        """A number of every scan, for each of its slices: (slices, 1, 1)."""
        return torch.tensor(values, dtype=torch.float32).repeat_interleave(counts)[:, None, None].to(device)

    def joined(arrays: Sequence[npt.NDArray[np.generic]]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(device)

    scanners, scenes = [one.scanner for one in batch], [one.scene for one in batch]
    image = _signal(batch, device) * _factor(batch, each, joined, device)
    coils = joined(
        [reception.weakened(scene.coils, scanner.coil_bias) for scene, scanner in zip(scenes, scanners, strict=True)]
    )
    image *= F.interpolate(coils[:, None], image.shape[1:], mode="bilinear", align_corners=True)[:, 0]
    lines = [one.lines for one in batch]
    window = [np.repeat((line.phase[:, None] * line.read)[None], len(line.ghost), 0) for line in lines]
    received = reception.sample(
        image,
        joined([line.ghost[:, :, None] for line in lines]),
        joined(window),
        noise(tuple(image.shape)) * each([line.noise for line in lines]),
        TORCH,
    )
    scale = each([one.scanner.intensity_scale / one.reference for one in batch])
    offset = each([scanner.intensity_scale for scanner in scanners])
    grey = reception.rounded_grey(received, scale, offset, is_signed(scanners[0], scenes[0].series))
    circle = torch.from_numpy(reception.in_circle(image.shape[1])).to(device)
    return torch.where(circle | (each([float(s.circular_view) for s in scanners]) == 0), grey, 0)


def _signal(batch: Sequence[Exposure], device: torch.device) -> torch.Tensor:
    """Signal in the body of every pixel, partial volume and all."""
    signals = [torch.from_numpy(one.signal).to(device)[torch.from_numpy(one.scene.code).to(device)] for one in batch]
    return torch.cat(signals)


def _factor(
    batch: Sequence[Exposure],
    each: Callable[[Sequence[float]], torch.Tensor],
    joined: Callable[[Sequence[npt.NDArray[np.generic]]], torch.Tensor],
    device: torch.device,
) -> torch.Tensor:
    """What uneven tissue, flow and off-resonance do to the signal."""
    scanners, cuts = [one.scanner for one in batch], [one.cuts for one in batch]
    coarse, fine = _fields([cut.coarse for cut in cuts], device), _fields([cut.fine for cut in cuts], device)
    factor = reception.tissue_factor(coarse, fine, each([scanner.texture for scanner in scanners]))
    eddies = [cut.eddies for cut in cuts if cut.eddies is not None]
    if eddies:
        pool = joined([(one.scene.mask == 1) | (one.scene.mask == 3) for one in batch])
        factor += reception.flow_loss(_fields(eddies, device), pool, each([scanner.flow_mottle for scanner in scanners]))
    bands = [cut.bands for cut in cuts if cut.bands is not None]
    if bands:
        counts = [len(one.scene.code) for one in batch]
        field = torch.cat([_fields([cut], device).expand(n, -1, -1) for cut, n in zip(bands, counts, strict=True)])
        height = joined([reception.heights(n).astype(np.float32) for n in counts])
        factor *= reception.band_factor(field, height, each([scanner.banding for scanner in scanners]), TORCH)
    return factor


_tiles: dict[tuple[int, torch.device], torch.Tensor] = {}


def _fields(cuts: Sequence[Cut], device: torch.device) -> torch.Tensor:
    """The textures of several scans, one after another; tiles stay on the device."""
    fields = []
    for cut in cuts:
        if (cut.smooth, device) not in _tiles:
            _tiles[cut.smooth, device] = torch.from_numpy(reception.noise_tile(cut.smooth)).to(device)
        rows, columns = torch.from_numpy(cut.rows).to(device), torch.from_numpy(cut.columns).to(device)
        fields.append(_tiles[cut.smooth, device][rows, columns])
    return torch.cat(fields)
