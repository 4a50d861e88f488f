"""Colors films: `jaxcolor video IN OUT`, with colors that are carried along the motion (`steady`).

May import `inference` and the rooms below it. It needs the extra `video`: PyAV, which brings FFmpeg, and OpenCV.
"""
