"""What is read of weights files, and what is refused; above all, code in pickles."""

import os
import pickle
import struct
import sys
import zipfile

import h5py
import numpy as np
import pytest
from torch_files import write_torch_stream, write_torch_zip

from jaxcolor.errors import UserError
from jaxcolor.weights.weight_files import read_weights


def test_files_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(UserError, match=r'nowhere.h5 cannot be read: No such file'):
        read_weights(tmp_path / 'nowhere.h5')
    with pytest.raises(UserError, match='cannot be read: Is a directory'):
        read_weights(tmp_path)
    (tmp_path / 'notes.txt').write_text('no weights in here, none at all')
    (tmp_path / 'empty.pth').write_bytes(b'')
    (tmp_path / 'list.pkl').write_bytes(pickle.dumps([1, 2, 3]))
    with zipfile.ZipFile(tmp_path / 'photos.zip', 'w') as archive:
        archive.writestr('photo.jpg', b'')
    with h5py.File(tmp_path / 'table.h5', 'w') as file:
        file['table'] = np.zeros(3)
    write_torch_zip({'epoch': 3}, tmp_path / 'epoch.pth')
    reasons = {
        'notes.txt': 'none of the kinds that are read',
        'empty.pth': 'none of the kinds that are read',
        'list.pkl': 'a pickle, but not one of PyTorch',
        'photos.zip': 'a zip archive, but neither of Keras nor of PyTorch',
        'table.h5': 'an HDF5 file, but not one of Keras',
        'epoch.pth': 'no state dict of PyTorch',
    }
    for file, reason in reasons.items():
        with pytest.raises(UserError, match=f'{file}: it .*{reason}'):
            read_weights(tmp_path / file)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


@pytest.mark.parametrize('write', [write_torch_zip, write_torch_stream])
def test_state_dict_is_read_without_torch(tmp_path, write):
    arrays = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.zeros((0, 4), np.float32)}
    arrays |= {'c': arrays['a'].T * 2, 'd': np.array(5, np.float32)}
    write(arrays, tmp_path / 'plain.pth')
    write({'state_dict': arrays, 'epoch': 14, 'loss': 0.5}, tmp_path / 'training.ckpt')
    for file in ('plain.pth', 'training.ckpt'):
        read = read_weights(tmp_path / file)
        assert read.kind == 'torch'
        assert list(read.arrays) == ['a', 'b', 'c', 'd']
        for name, array in arrays.items():
            np.testing.assert_array_equal(read.arrays[name], array)


@pytest.mark.parametrize('write', [write_torch_zip, write_torch_stream])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, write):
    marker = tmp_path / 'marker'
    write({'weight': np.zeros(3, np.float32), 'evil': Evil(marker)}, tmp_path / 'evil.pth')
    with pytest.raises(UserError, match=r'evil.pth: it asks for posix.system, and nothing but tensors is taken'):
        read_weights(tmp_path / 'evil.pth')
    assert not marker.exists()
    # The file is what it is taken for: a plain unpickler runs it.
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()


def test_code_ahead_of_an_older_file_is_not_run(tmp_path):
    marker = tmp_path / 'marker'
    write_torch_stream({}, tmp_path / 'evil.pth', magic=Evil(marker))
    with pytest.raises(UserError, match=r'asks for posix.system'):
        read_weights(tmp_path / 'evil.pth')
    assert not marker.exists()


def test_pickled_names_of_harmless_packages_are_not_imported(tmp_path):
    # A checkpoint of PyTorch Lightning names its own classes; they are passed over, not looked up.
    with zipfile.ZipFile(tmp_path / 'lightning.ckpt', 'w') as archive:
        names = b'cpytorch_lightning.nowhere\nModelCheckpoint\n(I1\ntR.'
        archive.writestr('archive/data.pkl', b'\x80\x02}(X\x01\x00\x00\x00a' + names[:-1] + b'u.')
    with pytest.raises(UserError, match='no state dict of PyTorch'):
        read_weights(tmp_path / 'lightning.ckpt')
    assert 'pytorch_lightning' not in sys.modules


@pytest.mark.parametrize(
    'view', [(0, (2, 3), (4, 1)), (5, (2,), (1,)), (-1, (2,), (1,)), (5, (2,), (-1,)), (0, (2, 10**12), (0, 1))]
)
def test_tensor_outside_its_storage_is_refused(tmp_path, view):
    write_torch_zip({'a': np.arange(6, dtype=np.float32)}, tmp_path / 'outside.pth', view)
    with pytest.raises(UserError, match=r'outside.pth: a tensor lies outside the stored values'):
        read_weights(tmp_path / 'outside.pth')


@pytest.mark.parametrize('write', [write_torch_zip, write_torch_stream])
@pytest.mark.parametrize('wrapping', ['params', 'params_ema', 'model'])
def test_wrappings_of_published_files(tmp_path, write, wrapping):
    arrays = {'a': np.arange(6, dtype=np.float32).reshape(2, 3)}
    write({wrapping: arrays, 'opt': {'groups': [slice(0, 3, None)]}}, tmp_path / 'wrapped.pth')
    read = read_weights(tmp_path / 'wrapped.pth').arrays
    assert list(read) == ['a']
    np.testing.assert_array_equal(read['a'], arrays['a'])


def test_averaged_parameters_come_first(tmp_path):
    one, two = ({'a': np.full(3, value, np.float32)} for value in (1, 2))
    write_torch_zip({'params': one, 'params_ema': two}, tmp_path / 'both.pth')
    assert read_weights(tmp_path / 'both.pth').arrays['a'][0] == 2


def test_a_memo_of_gigabytes_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'memo.pth', 'w') as archive:
        archive.writestr('archive/data.pkl', b'\x80\x02}r' + (2**31).to_bytes(4, 'little') + b'.')
    with pytest.raises(UserError, match='memo.pth: it is damaged'):
        read_weights(tmp_path / 'memo.pth')


def test_a_tensor_that_repeats_few_values_is_refused(tmp_path):
    """Its copy, which folding a norm makes, would have 4 TiB."""
    write_torch_zip({'layers.11.0.weight_orig': np.zeros(6, np.float32)}, tmp_path / 'view.pth', (0, (2**20, 2**20), (0, 0)))
    with pytest.raises(UserError, match=r'view.pth: a tensor has more values than are stored'):
        read_weights(tmp_path / 'view.pth')


def test_content_that_grows_by_much_is_refused(tmp_path):
    """Before it is unpacked."""
    with zipfile.ZipFile(tmp_path / 'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', bytes(2**20))
    with h5py.File(tmp_path / 'bomb.h5', 'w') as file:
        values = file.create_dataset('conv/kernel', (2**40,), 'f4', chunks=(2**10,))  # none of them is in the file
        assert values.id.get_storage_size() == 0
        file['conv'].attrs['weight_names'] = [b'kernel']
    for name in ('bomb.pth', 'bomb.h5'):
        with pytest.raises(UserError, match=rf'{name}: it claims to hold \d+ times its size'):
            read_weights(tmp_path / name)


def test_a_heap_that_never_ends_is_refused(tmp_path):
    """libhdf5 would run forever."""
    with h5py.File(tmp_path / 'whole.h5', 'w') as file:
        file['conv/kernel'] = np.zeros(3, np.float32)
        file['conv'].attrs['weight_names'] = ['kernel', 'x' * 100, '']
        file['conv'].attrs['weight_names'] = ['kernel']
    assert list(read_weights(tmp_path / 'whole.h5').arrays) == ['conv/0']
    data = bytearray((tmp_path / 'whole.h5').read_bytes())
    heap = data.index(b'GCOL')
    data[heap + 16 :] = bytes(len(data) - heap - 16)
    (tmp_path / 'damaged.h5').write_bytes(data)
    with zipfile.ZipFile(tmp_path / 'damaged.keras', 'w') as archive:
        archive.writestr('model.weights.h5', bytes(data))
    for name in ('damaged.h5', 'damaged.keras'):
        with pytest.raises(UserError, match=f'{name}: it is damaged: a heap of strings'):
            read_weights(tmp_path / name)


@pytest.mark.parametrize('head', [b'PK\x03\x04', b'\x80\x02', struct.pack('<ii', 3, 1), b'\x89HDF\r\n\x1a\n'])
def test_files_of_many_gigabytes_of_nothing_are_refused(tmp_path, head):
    """Such as downloads leave whose space was set aside."""
    with open(tmp_path / 'sparse.pth', 'wb') as file:
        file.write(head)
        file.truncate(60 * 2**30)
    with pytest.raises(UserError, match=r'sparse.pth: it has 60 GiB'):
        read_weights(tmp_path / 'sparse.pth')
