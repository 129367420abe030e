#!/usr/bin/env bash
# FFmpeg 8.1.2 (PyAV 18.1.0) and chained Ogg Vorbis, which recorders and radios write when a stream starts again.
# Observed on 2026-11-27: a chain of 16 kHz and 44.1 kHz is refused ("not yet implemented"). A chain of two streams of
# 2 s and 3 s at 16 kHz gives 80,512 samples instead of 80,000. 0.5 s at 16 kHz in one page gives 8,320 samples instead
# of 8,000. libsndfile 1.2.2 reads only the first stream: 32,000 of 80,000 samples. Exits 1 if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 soundfile==0.14.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import io, sys
import av, numpy as np, soundfile as sf

def vorbis(seconds, rate):
    file = io.BytesIO()
    with sf.SoundFile(file, "w", rate, 1, format="OGG", subtype="VORBIS") as out:
        x = 0.3 * np.sin(np.arange(round(seconds * rate)) / 5)
        for i in range(0, len(x), 8192):
            out.write(x[i : i + 8192])
    return file.getvalue()

def by_ffmpeg(data):
    try:
        with av.open(io.BytesIO(data)) as container:
            return sum(frame.samples for frame in container.decode(audio=0))
    except av.FFmpegError as error:
        return type(error).__name__

alike = vorbis(2, 16000) + vorbis(3, 16000)
found = {
    "2 s + 3 s, FFmpeg": by_ffmpeg(alike),
    "2 s + 3 s, libsndfile": len(sf.read(io.BytesIO(alike))[0]),
    "16 kHz + 44.1 kHz, FFmpeg": by_ffmpeg(vorbis(2, 16000) + vorbis(3, 44100)),
    "0.5 s, FFmpeg": by_ffmpeg(vorbis(0.5, 16000)),
    "0.5 s, libsndfile": len(sf.read(io.BytesIO(vorbis(0.5, 16000)))[0]),
}
print(f"FFmpeg {av.ffmpeg_version_info}, PyAV {av.__version__}, libsndfile {sf.__libsndfile_version__}")
for what, samples in found.items():
    print(f"{what}: {samples}")
sys.exit(list(found.values()) != [80512, 32000, "PatchWelcomeError", 8320, 8000])
PY
