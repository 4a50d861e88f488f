"""The web page and the HTTP API of `jaxcolor serve` (extra `web`): photos of a browser or a program -> color.

May import every room below it; only the commands import it.
"""
