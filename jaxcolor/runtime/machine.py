"""The processor of this machine."""

import platform


def processor() -> str:
    """The model name of the processor; its architecture where the system does not tell the name."""
    return _cpuinfo('model name') or platform.processor() or platform.machine()


def processor_features() -> str:
    """The instruction sets of the processor, separated by spaces; its model name where the system does not list them."""
    return _cpuinfo('flags', 'Features') or processor()


def _cpuinfo(*names: str) -> str:
    """The first value in /proc/cpuinfo under one of the names (they differ between x86 and ARM), '' if there is none."""
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            return next(line.partition(':')[2].strip() for line in file if line.startswith(names))
    except (OSError, StopIteration):
        return ''
