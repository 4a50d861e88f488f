"""Measures speed and memory: training and inference steps, the input pipeline, preparing, coloring, PyTorch beside them.

May import every room except `jaxcolor.train`, `jaxcolor.sweep` and the commands of other rooms; nothing imports it but the
command line. PyTorch and scikit-image are optional and imported late.
"""
