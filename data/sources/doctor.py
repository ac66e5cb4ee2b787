"""What this machine can open and decode."""

from __future__ import annotations

CODECS = ("h264", "hevc", "vp8", "vp9", "av1")


def check() -> list[tuple[str, bool, str]]:
    """(name, whether it works, detail) of every part that sources need. Never raises; a missing package is a row."""
    rows: list[tuple[str, bool, str]] = []
    try:
        import av
        import av.codec
    except (ImportError, OSError) as error:
        rows.append(("PyAV", False, f"missing: pip install 'av>=15,<19' ({error})"))
    else:
        rows.append(("PyAV", True, f"{av.__version__}, FFmpeg {av.ffmpeg_version_info}"))
        rows.extend(_decoder(name) for name in CODECS)
        for name, why in (("rtsp", "cameras"), ("hls", "HTTP live streams")):
            found = name in av.formats_available
            rows.append((f"reads {name}", found, why if found else f"{why} cannot be opened with this build of FFmpeg"))
    try:
        import decord
    except (ImportError, OSError) as error:
        rows.append(("decord", False, f"missing, used only when asked for: pip install decord2 ({error})"))
    else:
        rows.append(("decord", True, str(decord.__version__)))
    return rows


def _decoder(name: str) -> tuple[str, bool, str]:
    import av.codec
    import av.error

    for decoder in ("libdav1d", "av1") if name == "av1" else (name,):
        try:
            return (f"decodes {name}", True, av.codec.Codec(decoder, "r").long_name)
        except (av.error.FFmpegError, ValueError):
            continue
    return (f"decodes {name}", False, "no decoder in this build of FFmpeg; convert such files to H.264")
