"""Devices that a program can be compiled for without having one: their descriptions, and rates for a roofline."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from jaxcolor import files
from jaxcolor.errors import UserError

_FOLDER = Path(__file__).parent / 'targets'
NAMES = sorted(path.stem for path in _FOLDER.glob('*.json'))
# XLA writes the description of the GPU beside what it compiles.
_DESCRIBE = 'import jax; jax.block_until_ready(jax.jit(lambda x: x + 1)(0.0)); print(jax.devices()[0].device_kind)'


class Target(NamedTuple):
    """A kind of device.

    device: its name. platform: 'cuda' or 'tpu'. peaks: multiplications and additions a second that large products reach, by
    precision: 'f32', 'tf32', 'bf16', 'f16'. bandwidth: bytes a second that large copies reach. memory: bytes. description:
    of a GPU, XLA's target configuration in text form; of a TPU, the name of a topology, 'v5e:2x2'.
    """

    device: str
    platform: str
    peaks: dict[str, float]
    bandwidth: float
    memory: float
    description: str


def load_target(name: str) -> Target:
    """One of NAMES, or a file that `write_target` wrote. Raises UserError."""
    path = _FOLDER / f'{name}.json' if name in NAMES else Path(name)
    try:
        return Target(**json.loads(path.read_text(encoding='utf-8')))
    except FileNotFoundError:
        known = ', '.join(NAMES)
        raise UserError(
            f'--target: there is no {name!r}; there are {known}, and files that --describe writes on other GPUs.'
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f'--target: {path} describes no device ({error}); --describe writes such files.') from None


def write_target(path: str | os.PathLike[str], ceilings: dict[str, dict[str, float]], memory: float) -> None:
    """Describes the GPU of this machine in a file, so that others can compile for it.

    Args:
        path: of the file.
        ceilings: {precision: `workload.ceilings`}.
        memory: of the device, in bytes.

    Raises:
        UserError: XLA describes no GPU here, or the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_dump_to={folder} --xla_dump_hlo_as_text'
        command, environment = [sys.executable, '-c', _DESCRIBE], {**os.environ, 'XLA_FLAGS': flags}
        device = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()
        found = sorted(Path(folder).glob('*gpu_target_config*'))
        if not device or not found:
            raise UserError('--describe: XLA describes no GPU here; run it on a machine that has one.')
        description = found[0].read_text(encoding='utf-8')
    peaks = {precision: rates['flops_per_second'] for precision, rates in ceilings.items()}
    peaks.setdefault('f16', peaks['bf16'])
    bandwidth = max(rates['bytes_per_second'] for rates in ceilings.values())
    content: dict[str, Any] = Target(device, 'cuda', peaks, bandwidth, memory, description)._asdict()
    try:
        with files.atomic(Path(path)) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding='utf-8')
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror or error}).') from None
