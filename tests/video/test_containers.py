"""Films in containers: what is beside the picture, times that start again, and names that FFmpeg could misread."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from conftest import ROOT
from film_helpers import FRAMES, Painter, frames_of, packets_of, pictures, times_of, write_film
from PIL import Image

from jaxcolor.errors import UserError
from jaxcolor.video.film import color_film

pytestmark = pytest.mark.video


def test_recordings_that_were_joined_go_on(tmp_path):
    """Their times start again in the middle, and at any time at the beginning."""
    one = write_film(tmp_path / 'one.ts', list(pictures(2 * FRAMES)), codec='libx264', pixel_format='yuv420p', audio='aac')
    assert times_of(one)[0] > 0.1
    (tmp_path / 'two.ts').write_bytes(2 * one.read_bytes())
    for suffix in ('.mkv', '.mp4'):
        out = tmp_path / f'out{suffix}'
        summary = color_film(Painter(), tmp_path / 'two.ts', out, quiet=True)
        assert summary.frames == 4 * FRAMES and 'start again (1)' in summary.notes[0]
        times, sound = np.array(times_of(out)), np.array([time for _, time in packets_of(out, 'audio')])
        assert abs(min(times[0], sound[0])) < 1e-3
        np.testing.assert_allclose(np.diff(times), 1 / 12, atol=2e-3)
        assert (np.diff(sound) > 0).all() and sound[-1] > times[3 * FRAMES - 2]
        # Without the 7 bytes that each packet of a recording begins with.
        assert [data for data, _ in packets_of(out, 'audio')] == 2 * [data[7:] for data, _ in packets_of(one, 'audio')]


def test_covers_are_kept(tmp_path):
    gray = write_film(tmp_path / 'gray.mkv', codec='libx264', pixel_format='yuv420p')
    cover = (ROOT / 'jaxcolor' / 'data' / 'photos' / 'train' / 'fish1.jpg').read_bytes()
    with av.open(str(gray)) as film, av.open(str(tmp_path / 'cover.mkv'), 'w') as made:
        stream = made.add_stream_from_template(film.streams.video[0], opaque=True)
        made.add_attachment('cover.jpg', 'image/jpeg', cover)
        for packet in film.demux(video=0):
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    given = tmp_path / 'cover.mkv'
    for name in ('a.mkv', 'b.mp4', 'c.mkv'):
        assert not color_film(Painter(), given, tmp_path / name, quiet=True).notes
        with av.open(str(tmp_path / name)) as out:
            _, kept = out.streams.video
            assert kept.disposition & Disposition.attached_pic
            assert [bytes(each) for each in out.demux(kept) if each.size] == [cover]
        given = tmp_path / name


def test_odd_names_and_numbered_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "Part 2: -- the 'end' %d.mkv"  # FFmpeg could take what is before the colon for a protocol
    write_film(tmp_path / name, list(pictures(2)))
    assert color_film(Painter(), name, f'c:{name}', quiet=True).frames == 2
    for i, picture in enumerate(pictures(3)):
        Image.fromarray(picture).save(f'{i:03d}.png')
    assert color_film(Painter(), '%03d.png', 'numbered.mkv', quiet=True).frames == 3


def test_a_matroska_film_says_its_frame_rate(tmp_path):
    gray = write_film(tmp_path / 'gray.mp4', codec='libx264', pixel_format='yuv420p')
    color_film(Painter(), gray, tmp_path / 'out.mkv', quiet=True)
    with av.open(str(tmp_path / 'out.mkv')) as out:
        assert float(out.streams.video[0].average_rate) == pytest.approx(12, rel=0.05)


def test_streams_that_a_container_does_not_take_are_said(tmp_path):
    gray = write_film(tmp_path / 'gray.mkv', audio='pcm_s16le')
    flac = write_film(tmp_path / 'flac.mkv', audio='flac')
    for given, name, codec in ((gray, 'out.webm', 'libvpx-vp9'), (flac, 'out.mov', ''), (flac, 'out.ts', '')):
        summary = color_film(Painter(), given, tmp_path / name, codec=codec, quiet=True)
        assert len(summary.notes) == 1 and 'the audio stream 1 does not go into this container' in summary.notes[0]
        assert len(frames_of(tmp_path / name)) == FRAMES


def test_codecs_that_transport_streams_have_no_type_for_are_refused(tmp_path):
    gray = write_film(tmp_path / 'gray.mkv', list(pictures(2)))
    with pytest.raises(UserError, match=r'\.ts does not take what ffv1 encodes'):
        color_film(Painter(), gray, tmp_path / 'out.ts', codec='ffv1', quiet=True)


def test_chapters_and_metadata_that_a_container_does_not_take_are_said(tmp_path):
    def prepare(container, stream):
        container.metadata.update({'title': 'A film', 'com.example.lens': '35 mm'})
        container.set_chapters(
            [{'id': 1, 'start': 0, 'end': 100, 'time_base': Fraction(1, 1000), 'metadata': {'title': 'One'}}]
        )

    gray = write_film(tmp_path / 'gray.mkv', list(pictures(3)), prepare=prepare)
    lost = {'out.mkv': '', 'out.mp4': 'COM.EXAMPLE.LENS', 'out.ts': 'chapters, title, COM.EXAMPLE.LENS'}
    for name, what in lost.items():
        notes = color_film(Painter(), gray, tmp_path / name, quiet=True).notes
        assert [note.partition('keep ')[2] for note in notes] == ([f'{what}; .mkv does.'] if what else [])


def test_transparency_beside_the_picture_is_said(tmp_path):
    gray = write_film(
        tmp_path / 'gray.webm',
        list(pictures(2)),
        codec='libvpx-vp9',
        pixel_format='yuv420p',
        prepare=lambda container, stream: stream.metadata.update({'alpha_mode': '1'}),
    )
    assert 'transparency, which is not kept' in ' '.join(color_film(Painter(), gray, tmp_path / 'out.mkv', quiet=True).notes)
