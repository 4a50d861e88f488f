"""Films: what a colored one keeps, what it is made of, and what becomes of broken ones, interrupted ones, and odd sizes."""

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import assert_one_sentence
from film_helpers import (
    FRAMES,
    HEIGHT,
    WIDTH,
    Painter,
    frames_of,
    matrix_of,
    packets_of,
    pictures,
    planes_of,
    times_of,
    write_film,
)

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.video import film as film_module
from jaxcolor.video import steady
from jaxcolor.video.film import color_film

pytestmark = pytest.mark.video
LOSSLESS = {'codec': 'ffv1', 'quiet': True}


@pytest.fixture(scope='module')
def gray(tmp_path_factory):
    """A gray film with sound."""
    return write_film(tmp_path_factory.mktemp('film') / 'gray.mkv', audio='flac')


def test_frames_timestamps_duration_and_sound_are_kept(gray, tmp_path):
    summary = color_film(Painter(), gray, tmp_path / 'out.mkv', quiet=True)
    assert summary.frames == FRAMES and not summary.notes
    assert times_of(tmp_path / 'out.mkv') == times_of(gray)
    assert packets_of(tmp_path / 'out.mkv', 'audio') == packets_of(gray, 'audio')
    with av.open(str(gray)) as before, av.open(str(tmp_path / 'out.mkv')) as after:
        assert after.duration == before.duration
        assert [stream.type for stream in after.streams] == ['video', 'audio']
    assert os.listdir(tmp_path) == ['out.mkv']


def test_colors_are_those_of_the_network_and_luma_stays(tmp_path):
    gray = write_film(tmp_path / 'gray.mkv', pixel_format='yuv420p')
    color_film(Painter(), gray, tmp_path / 'out.mkv', temporal=0, **LOSSLESS)
    for before, after in zip(frames_of(gray), frames_of(tmp_path / 'out.mkv'), strict=True):
        (luma, *_), (kept, *_) = planes_of(before), planes_of(after)
        np.testing.assert_array_equal(kept, luma)
        assert after.format.name == 'yuv420p'
        lab = color.rgb_to_lab(after.to_ndarray(format='rgb24'))
        down = (np.arange(HEIGHT) + 0.5) / HEIGHT * 2 - 1
        assert np.abs(lab[8:-8, :, 2].mean(axis=1) - 25 * down[8:-8]).max() < 3  # b* of the painter, from top to bottom


@pytest.mark.parametrize('suffix', ['.mkv', '.mp4'])
def test_variable_frame_rate(suffix, tmp_path):
    pts = [0, 40, 80, 200, 210, 250, 500, 510, 900, 940, 980, 1500]
    gray = write_film(tmp_path / f'vfr{suffix}', codec='libx264', pixel_format='yuv420p', pts=pts)
    color_film(Painter(), gray, tmp_path / f'out{suffix}', quiet=True)
    assert times_of(tmp_path / f'out{suffix}') == times_of(gray) == [time / 1000 for time in pts]


def test_rotation_aspect_chapters_metadata_and_subtitles(tmp_path):
    chapters = [{'id': 1, 'start': 0, 'end': 500, 'time_base': Fraction(1, 1000), 'metadata': {'title': 'One'}}]

    def prepare(container, stream):
        stream.set_display_rotation(90)
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.metadata['language'] = 'deu'
        container.metadata['title'] = 'A film'
        container.set_chapters(chapters)

    gray = write_film(tmp_path / 'gray.mkv', codec='libx264', pixel_format='yuv420p', prepare=prepare)
    seen = []
    painter = Painter()
    painter.predict_ab = lambda lightness: seen.append(lightness.shape) or Painter.predict_ab(painter, lightness)
    color_film(painter, gray, tmp_path / 'out.mkv', quiet=True)
    before, after = frames_of(gray)[0], frames_of(tmp_path / 'out.mkv')[0]
    assert matrix_of(after) == matrix_of(before) is not None
    assert seen[0] == (1, 64, 32, 1)  # upright: 48 x 85.3
    with av.open(str(tmp_path / 'out.mkv')) as out:
        assert out.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        assert out.streams.video[0].metadata['language'] == 'deu'
        assert out.metadata['title'] == 'A film'
        assert [(each['start'], each['metadata']) for each in out.chapters()] == [(0, {'title': 'One'})]


def test_subtitles_and_fonts_are_kept(tmp_path):
    text = [(b'Hello', 100), (b'World', 500)]

    def prepare(container, stream):
        container.add_attachment('a.ttf', 'application/x-truetype-font', b'a font')
        words = container.add_mux_stream('subrip')
        words.time_base = Fraction(1, 1000)
        for line, time_ in text:
            packet = av.Packet(line)
            packet.pts, packet.dts, packet.duration, packet.time_base, packet.stream = (
                time_,
                time_,
                300,
                Fraction(1, 1000),
                words,
            )
            container.mux_one(packet)

    gray = write_film(tmp_path / 'gray.mkv', prepare=prepare)
    assert not color_film(Painter(), gray, tmp_path / 'out.mkv', quiet=True).notes
    assert packets_of(tmp_path / 'out.mkv', 'subtitle') == packets_of(gray, 'subtitle')
    assert [line for line, _ in packets_of(gray, 'subtitle')] == [line for line, _ in text]
    with av.open(str(tmp_path / 'out.mkv')) as out:
        assert [bytes(each.data) for each in out.streams if each.type == 'attachment'] == [b'a font']


def test_interlaced_films_are_said_and_stay_so(tmp_path):
    options = {'flags': '+ildct+ilme', 'x264-params': 'tff=1'}
    gray = write_film(tmp_path / 'gray.mkv', codec='libx264', pixel_format='yuv420p', options=options)
    summary = color_film(Painter(), gray, tmp_path / 'out.mkv', quiet=True)
    assert len(summary.notes) == 1 and 'is interlaced' in summary.notes[0]
    assert all(frame.interlaced_frame for frame in frames_of(tmp_path / 'out.mkv'))


def test_ten_bits_keep_their_steps(tmp_path):
    ramp = np.repeat(np.arange(64, 64 + WIDTH, dtype=np.uint16)[None], HEIGHT, axis=0)  # a step of 10 bits a pixel
    gray = write_film(tmp_path / 'gray.mkv', [ramp] * 3, pixel_format='yuv420p10le')
    color_film(Painter(), gray, tmp_path / 'out.mkv', **LOSSLESS)
    color_film(Painter(), gray, tmp_path / 'out.mp4', quiet=True)
    for frame in frames_of(tmp_path / 'out.mkv'):
        luma, cb, _ = planes_of(frame, np.uint16)
        np.testing.assert_array_equal(luma, ramp)
        assert cb.max() > 512 and frame.format.name == 'yuv420p10le'
    assert {frame.format.name for frame in frames_of(tmp_path / 'out.mp4')} == {'yuv420p10le'}  # H.265


def test_more_depth_and_chroma_than_the_film_has(tmp_path):
    """ProRes takes 10 bits of 4:2:2 or 4:4:4 alone."""
    gray = write_film(tmp_path / 'gray.mkv', list(pictures(3)), pixel_format='yuv420p')
    color_film(Painter(), gray, tmp_path / 'out.mov', codec='prores_ks', quiet=True)
    before, after = frames_of(gray), frames_of(tmp_path / 'out.mov')
    assert times_of(tmp_path / 'out.mov') == pytest.approx(times_of(gray), abs=1e-3)
    for a, b in zip(before, after, strict=True):
        assert b.format.name == 'yuv422p10le'
        assert np.abs(4.0 * planes_of(a)[0] - planes_of(b, np.uint16)[0]).mean() < 16  # what ProRes loses


@pytest.mark.parametrize('pixel_format', ['gray', 'yuvj420p', 'yuv422p', 'yuv444p'])
def test_pixel_formats_keep_luma_range_and_subsampling(pixel_format, tmp_path):
    images = list(pictures(3))
    gray = write_film(
        tmp_path / 'gray.mkv', images, codec='mjpeg' if 'j' in pixel_format else 'ffv1', pixel_format=pixel_format
    )
    color_film(Painter(), gray, tmp_path / 'out.mkv', **LOSSLESS)
    for before, after in zip(frames_of(gray), frames_of(tmp_path / 'out.mkv'), strict=True):
        np.testing.assert_array_equal(planes_of(after)[0], planes_of(before)[0])
        wanted = {'gray': 'yuv420p', 'yuvj420p': 'yuv420p'}.get(pixel_format, pixel_format)
        assert after.format.name == wanted
        assert np.abs(planes_of(after)[1].mean() - 128) < 30


def test_ranges_are_kept(tmp_path):
    """What a stream says of black and white stays; a gray one that says nothing is full, as FFmpeg takes it."""
    for name, pixel_format, code, wanted in (
        ('a', 'yuv420p', 1, 1),
        ('b', 'yuv420p', 2, 2),
        ('c', 'yuv420p', 0, 1),
        ('d', 'gray', 0, 2),
    ):
        codec = 'ffv1' if pixel_format == 'gray' else 'libx264'
        gray = write_film(
            tmp_path / f'{name}.mkv',
            list(pictures(2)),
            codec=codec,
            pixel_format=pixel_format,
            prepare=lambda _, stream, code=code: setattr(stream.codec_context, 'color_range', code),
        )
        assert frames_of(gray)[0].color_range == code
        color_film(Painter(), gray, tmp_path / 'out.mkv', overwrite=True, quiet=True)
        assert frames_of(tmp_path / 'out.mkv')[0].color_range == wanted


def cut_film(path):
    """Two scenes of six frames."""
    scenes = [*pictures(6), *(image[::-1, ::-1] // 2 for image in pictures(6, shift=-3))]
    return write_film(path, [np.ascontiguousarray(image) for image in scenes])


def test_no_color_crosses_a_cut(tmp_path):
    gray = cut_film(tmp_path / 'gray.mkv')
    for name, temporal in (('alone', 0), ('carried', 0.95)):
        color_film(Painter(), gray, tmp_path / f'{name}.mkv', temporal=temporal, **LOSSLESS)
    alone, carried = (frames_of(tmp_path / f'{name}.mkv') for name in ('alone', 'carried'))
    same = [all(map(np.array_equal, planes_of(a), planes_of(b))) for a, b in zip(alone, carried, strict=True)]
    assert same[0] and same[6] and not all(same)


def test_batches_give_the_same_frames(tmp_path, monkeypatch):
    gray = cut_film(tmp_path / 'gray.mkv')
    monkeypatch.setattr(steady, '_EVERY', 1)
    for size in (1, 5):
        painter = Painter()
        painter.batch_size = size
        color_film(painter, gray, tmp_path / f'{size}.mkv', **LOSSLESS)
        assert painter.calls == (3 if size == 5 else 12)
    for a, b in zip(frames_of(tmp_path / '1.mkv'), frames_of(tmp_path / '5.mkv'), strict=True):
        assert all(map(np.array_equal, planes_of(a), planes_of(b)))


# -- Interruptions ----------------------------------------------------------------------------------------------------


def test_an_interrupted_film_goes_on_with_the_same_frames(tmp_path, monkeypatch):
    gray = cut_film(tmp_path / 'gray.mkv')
    options = {'mbtree': '0', 'preset': 'ultrafast'}  # x264's mbtree reads memory that it has not set
    monkeypatch.setattr(film_module, 'KEY_FRAME_EVERY', 4)
    monkeypatch.setattr(steady, '_EVERY', 1)
    color_film(Painter(), gray, tmp_path / 'whole.mkv', options=options, quiet=True)
    with pytest.raises(RuntimeError):
        color_film(Painter(fail_after=9), gray, tmp_path / 'out.mkv', options=options, quiet=True)
    assert sorted(path.name for path in (tmp_path / 'out.mkv.parts').glob('*.nut')) == ['00000000.nut', '00000004.nut']
    assert not (tmp_path / 'out.mkv').exists()
    with pytest.raises(UserError, match='--overwrite starts anew'):
        color_film(Painter(), gray, tmp_path / 'out.mkv', temporal=0.5, options=options, quiet=True)
    painter = Painter()
    assert color_film(painter, gray, tmp_path / 'out.mkv', options=options, quiet=True).frames == FRAMES
    assert painter.calls == 4  # of the last part
    whole, out = frames_of(tmp_path / 'whole.mkv'), frames_of(tmp_path / 'out.mkv')
    for a, b in zip(whole, out, strict=True):
        assert a.pts == b.pts
        assert all(map(np.array_equal, planes_of(a), planes_of(b)))
    assert not (tmp_path / 'out.mkv.parts').exists()


def test_a_still_film_asks_for_every_eighth_frame_also_after_an_interruption(tmp_path, monkeypatch):
    gray = write_film(tmp_path / 'gray.mkv', [next(pictures(1))] * FRAMES)
    monkeypatch.setattr(film_module, 'KEY_FRAME_EVERY', 6)
    painter = Painter()
    color_film(painter, gray, tmp_path / 'whole.mkv', **LOSSLESS)
    assert painter.calls == 2  # frames 0, 8
    with pytest.raises(RuntimeError):
        color_film(Painter(fail_after=1), gray, tmp_path / 'out.mkv', **LOSSLESS)
    painter = Painter()
    color_film(painter, gray, tmp_path / 'out.mkv', **LOSSLESS)
    assert painter.calls == 1
    for a, b in zip(frames_of(tmp_path / 'whole.mkv'), frames_of(tmp_path / 'out.mkv'), strict=True):
        assert all(map(np.array_equal, planes_of(a), planes_of(b)))


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_same_frames(trained, tmp_path):
    gray = write_film(tmp_path / 'gray.mkv', list(pictures(1200)), audio='flac')
    command = [sys.executable, '-m', 'jaxcolor', 'video', str(gray)]
    options = [f'--model={trained}', '--option=mbtree=0']
    subprocess.run([*command, str(tmp_path / 'whole.mkv'), *options], check=True, timeout=600)
    process = subprocess.Popen([*command, str(tmp_path / 'out.mkv'), *options])
    parts = tmp_path / 'out.mkv.parts'
    deadline = time.monotonic() + 300
    while len(list(parts.glob('[0-9]*.nut'))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert parts.exists() and not (tmp_path / 'out.mkv').exists()
    subprocess.run([*command, str(tmp_path / 'out.mkv'), *options], check=True, timeout=600)
    assert packets_of(tmp_path / 'out.mkv', 'video') == packets_of(tmp_path / 'whole.mkv', 'video')
    assert packets_of(tmp_path / 'out.mkv', 'audio') == packets_of(gray, 'audio')


# -- Odd and broken films ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(1, 1), (65, 49), (2, 3), (300, 2)])
@pytest.mark.parametrize('codec', ['', 'ffv1', 'libx265'])
def test_odd_sizes(size, codec, tmp_path):
    width, height = size
    images = [np.full((height, width), 40 * i + 20, np.uint8) for i in range(3)]
    gray = write_film(tmp_path / 'gray.mkv', images)
    try:
        color_film(Painter(), gray, tmp_path / 'out.mkv', codec=codec, quiet=True)
    except UserError as error:
        assert (codec, min(size)) in (('libx265', 1), ('libx265', 2), ('ffv1', 2)) and 'does not take this film' in str(
            error
        )
        assert os.listdir(tmp_path) == ['gray.mkv']
        return
    frames = frames_of(tmp_path / 'out.mkv')
    assert [(frame.width, frame.height) for frame in frames] == [size] * 3


def test_one_frame(tmp_path):
    gray = write_film(tmp_path / 'gray.mkv', list(pictures(1)))
    assert color_film(Painter(), gray, tmp_path / 'out.mp4', quiet=True).frames == 1
    assert len(frames_of(tmp_path / 'out.mp4')) == 1


def test_a_truncated_film_is_colored_as_far_as_it_goes(tmp_path):
    gray = write_film(
        tmp_path / 'gray.mkv', [np.random.default_rng(t).integers(0, 255, (48, 64), np.uint8) for t in range(36)]
    )
    (tmp_path / 'cut.mkv').write_bytes(gray.read_bytes()[: gray.stat().st_size // 2])
    summary = color_film(Painter(), tmp_path / 'cut.mkv', tmp_path / 'out.mkv', quiet=True)
    assert 10 < summary.frames < 26
    assert any('ends after' in note for note in summary.notes), summary.notes
    assert len(frames_of(tmp_path / 'out.mkv')) == summary.frames


def refusals(tmp_path, gray):
    """What is refused: {name: (arguments, parts of the sentence)}."""
    (tmp_path / 'text.mp4').write_text('no film')
    (tmp_path / 'folder.mkv').mkdir()
    (tmp_path / 'there.mkv').write_bytes(b'there')
    half = write_film(tmp_path / 'half.mp4', codec='mpeg4', pixel_format='yuv420p')
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])  # without its index
    with av.open(str(tmp_path / 'sound.mkv'), 'w') as container:
        stream = container.add_stream('flac', 8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), 's16', 'mono')
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    out = tmp_path / 'out.mkv'
    return {
        'no file': ([tmp_path / 'none.mkv', out], ['none.mkv cannot be read']),
        'no film': ([tmp_path / 'text.mp4', out], ['text.mp4 cannot be read as a film']),
        'truncated': ([half, out], ['half.mp4 cannot be read as a film']),
        'no video': ([tmp_path / 'sound.mkv', out], ['sound.mkv has no video stream']),
        'the same': ([gray, gray, '--overwrite'], ['is the film itself']),
        'is there': ([gray, tmp_path / 'there.mkv'], ['--overwrite replaces it']),
        'a folder': ([gray, tmp_path / 'folder.mkv', '--overwrite'], ['is a folder']),
        'unwritable': ([gray, '/proc/out.mkv'], ['/proc/out.mkv cannot be written']),
        'container': ([gray, tmp_path / 'out.xyz'], ['.xyz is no container', '.mkv']),
        'codec': ([gray, out, '--codec=libx266'], ['libx266 is no encoder']),
        'codec of sound': ([gray, out, '--codec=flac'], ['flac takes none']),
        'container and codec': ([gray, tmp_path / 'out.webm', '--codec=libx264'], ['.webm does not take']),
        'option': ([gray, out, '--option=presto=slow'], ['presto']),
        'no option': ([gray, out, '--option=slow'], ['NAME=VALUE']),
        'quality': ([gray, out, '--codec=ffv1', '--quality=3'], ['--quality is for']),
        'worse than the worst': ([gray, out, '--quality=52'], ['from 0 to 51, not 52']),
        'no pictures': ([gray, out, '--codec=aac'], ['takes none of the pixel formats', 'it has none']),
        'temporal': ([gray, out, '--temporal=1'], ['--temporal must be']),
    }


def test_refusals_are_one_sentence(gray, tmp_path, cli, monkeypatch):
    monkeypatch.setattr('jaxcolor.inference.colorizer.Colorizer', lambda *_, **__: Painter())
    before = None
    for name, (words, parts) in refusals(tmp_path, gray).items():
        before = before or sorted(os.listdir(tmp_path))
        code, _, err = cli('video', *words)
        print(name, err)
        assert_one_sentence(code, err, *parts)
        assert sorted(os.listdir(tmp_path)) == before, name


def test_the_command_colors_with_a_network(trained, tmp_path, cli):
    gray = write_film(tmp_path / 'gray.mkv', list(pictures(2)))
    code, out, err = cli(
        'video', gray, tmp_path / 'out.mp4', f'--model={trained}', '--quality=20', '--option=preset=ultrafast'
    )
    assert code == 0, err
    assert '2 frames colored' in out
    assert len(frames_of(tmp_path / 'out.mp4')) == 2
