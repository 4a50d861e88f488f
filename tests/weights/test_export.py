"""Exported models: predictions, ensembles, and errors for damaged files."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import assert_one_sentence
from PIL import Image

import jaxcolor
from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.evaluation.evaluate import evaluate_run
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.runtime import logs
from jaxcolor.weights import runs, store
from jaxcolor.weights.export import export

# What float32 costs a*b*, whose range of 256 is 1 at the network's output: some 32 roundings, for its layers.
ROUNDING = 256 * 32 * float(np.finfo(np.float32).eps)


@pytest.fixture(scope='module')
def model(trained, tmp_path_factory):
    """The folder of an exported model of the trained run."""
    return export(trained, tmp_path_factory.mktemp('models') / 'small', summary='For tests.')


def test_an_exported_model_predicts_as_its_run(trained, model, photos):
    assert sorted(path.name for path in model.iterdir()) == ['config.json', 'weights.safetensors']
    assert (model / store.WEIGHTS).stat().st_mode & 0o044  # for others to read, too
    photo = Image.fromarray(photos[0])
    run = Colorizer(trained)
    state = run.state
    params = jax.device_get(state.params)
    halved = jax.tree.map(lambda x: x.astype(np.float16).astype(x.dtype) if x.ndim > 1 else x, params)
    run.state = state.replace(params=halved)  # its kernels are stored in half precision
    ours, theirs = (np.asarray(colorizer(photo), np.int32) for colorizer in (Colorizer(model), run))
    assert np.abs(ours - theirs).max() <= 1  # of 255, where rounding decides between two
    about = store.read_metadata(model)
    assert (about['name'], about['step'], about['summary']) == ('small', '4', 'For tests.')
    assert int(about['parameters']) == sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_the_averaged_parameters_are_exported(trained, tmp_path, monkeypatch):
    config, task, state = runs.load(trained)
    average = jax.tree.map(lambda x: 0.5 * x, state.weights())
    monkeypatch.setattr(runs, 'load', lambda model, step: (config, task, state.replace(ema=average)))
    folder = export(trained, tmp_path / 'averaged')
    monkeypatch.undo()
    _, _, exported = runs.load(folder)
    assert exported.ema == ()
    # Half a step of half precision, and of its numbers below 2^-14.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-11, atol=2**-25), exported.weights(), average)


def test_damaged_files_are_reported_in_one_sentence(model, tmp_path, cli, photos):
    Image.fromarray(photos[0]).save(tmp_path / 'photo.png')
    damaged = shutil.copytree(model, tmp_path / 'damaged')
    (damaged / store.WEIGHTS).write_bytes((model / store.WEIGHTS).read_bytes()[:1000])
    colorize = ('colorize', tmp_path / 'photo.png', f'--out={tmp_path / "out"}')
    assert_one_sentence(*_failed(cli(*colorize, f'--model={damaged}')), store.WEIGHTS, 'cannot be read')
    arrays = safetensors.numpy.load_file(model / store.WEIGHTS)
    with safetensors.safe_open(model / store.WEIGHTS, 'numpy') as file:
        metadata = file.metadata()
    arrays.pop('params/output/conv/bias')
    safetensors.numpy.save_file(arrays, damaged / store.WEIGHTS, metadata)
    with pytest.raises(UserError, match='does not fit its config.json: params/output/conv/bias is missing in the file'):
        runs.load(damaged)
    safetensors.numpy.save_file(arrays, damaged / store.WEIGHTS)
    with pytest.raises(UserError, match='is no model exported by jaxcolor'):
        runs.load(damaged)
    (damaged / store.WEIGHTS).unlink()
    with pytest.raises(UserError, match='damaged holds no checkpoint'):
        runs.load(damaged)


def _failed(done):
    code, _, err = done
    return code, err


def test_a_network_with_an_extractor_is_not_exported(trained, tmp_path, monkeypatch):
    config, task, state = runs.load(trained)
    config.extractor.name = 'vgg16'
    monkeypatch.setattr(runs, 'load', lambda model, step: (config, task, state))
    with pytest.raises(UserError, match='vgg16'):
        export(trained, tmp_path / 'none')
    assert not (tmp_path / 'none').exists()


def test_the_command_exports(trained, tmp_path, cli):
    code, out, err = cli('export', f'--model={trained}', f'--out={tmp_path / "mine"}', '--summary=Mine.')
    assert code == 0, err
    assert 'MiB' in out and json.loads((tmp_path / 'mine' / 'config.json').read_text())['name'] == 'mine'
    assert jaxcolor.load(tmp_path / 'mine').config.name == 'mine'


def test_inference_settings_are_stored_in_the_model(trained, model, tmp_path, photos):
    vivid = export(trained, tmp_path / 'vivid', fields={'chroma_gain': 2.0})
    lightness = Colorizer(trained).preprocess(Image.fromarray(photos[0]))
    ours, theirs = (Colorizer(path).predict_ab(lightness) for path in (vivid, model))
    assert np.abs(theirs).max() > 5
    np.testing.assert_allclose(ours, 2 * theirs, rtol=0, atol=2 * ROUNDING)
    with pytest.raises(UserError, match=r'no field task\.temperature: its task is regression'):
        export(trained, tmp_path / 'none', fields={'temperature': 0.5})
    with pytest.raises(UserError, match=r'task\.chroma_gain must lie between 0 and 10, not nan'):
        export(trained, tmp_path / 'none', fields={'chroma_gain': float('nan')})


def test_mirror_averages_with_the_mirror_image(trained, model, tmp_path, photos, cli):
    code, _, err = cli('export', f'--model={trained}', f'--out={tmp_path / "alike"}', '--mirror')
    assert code == 0, err
    plain, alike = Colorizer(model), Colorizer(tmp_path / 'alike')  # both of kernels in half precision
    lightness = plain.preprocess(Image.fromarray(photos[0]))
    there, back = (plain.predict_ab(light) for light in (lightness, lightness[:, :, ::-1]))
    assert np.abs(there - back[:, :, ::-1]).max() > 100 * ROUNDING
    ab = alike.predict_ab(lightness)
    np.testing.assert_allclose(ab, (there + back[:, :, ::-1]) / 2, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(alike.predict_ab(lightness[:, :, ::-1]), ab[:, :, ::-1], rtol=0, atol=ROUNDING)
    style = alike.global_features(Image.fromarray(photos[1]))
    mirrored = alike.predict_ab(lightness[:, :, ::-1], style)
    np.testing.assert_allclose(mirrored, alike.predict_ab(lightness, style)[:, :, ::-1], rtol=0, atol=ROUNDING)
    # So are the photos that a training and `evaluate` measure.
    lab = color.encode_lab(color.rgb_to_lab(np.stack([photo[:32, :32] for photo in photos[:2]])))
    _, ab = alike.task.eval_step(alike.state, {'lab': lab, 'label': np.zeros(2, np.int32)})
    prediction = alike.task.predict(alike.state, color.decode_lab(lab)[..., :1])
    np.testing.assert_allclose(ab, prediction, rtol=0, atol=ROUNDING)


def test_a_run_without_the_field_mirror_predicts_as_before(trained, tmp_path, photos):
    run = shutil.copytree(trained, tmp_path / 'older')
    config = json.loads((run / 'config.json').read_text())
    assert config['task'].pop('mirror') is False
    (run / 'config.json').write_text(json.dumps(config))
    lightness = Colorizer(trained).preprocess(Image.fromarray(photos[0]))
    np.testing.assert_array_equal(Colorizer(run).predict_ab(lightness), Colorizer(trained).predict_ab(lightness))


def test_export_overwrites_exported_models_only(trained, model, tmp_path):
    run = shutil.copytree(trained, tmp_path / 'run')
    before = (run / 'config.json').read_bytes()
    with pytest.raises(UserError, match='holds something else than an exported model'):
        export(trained, run)
    assert (run / 'config.json').read_bytes() == before
    again = export(model, shutil.copytree(model, tmp_path / 'again'), fields={'chroma_gain': 2.0})
    config, _, state = runs.load(again)
    assert config.task.chroma_gain == 2 and int(state.step) == 4
    with pytest.raises(UserError, match=r'--step=3: the exported model .* has step 4 only'):
        runs.load(again, 3)
    shutil.copy(model / 'config.json', again / 'config.json')
    with pytest.raises(UserError, match='was exported with another config.json'):
        runs.load(again)


def test_evaluating_an_exported_model_needs_data(trained, model, shards):
    with pytest.raises(UserError, match='without its training photos'):
        evaluate_run(model, '', ['validation'])
    figures = evaluate_run(model, shards, ['validation'])['validation']
    # The training photos of that set stand for its own, which it does not know.
    assert figures.keys() == {'network', 'gray', 'mean color', 'nearest photo'}
    assert figures['network']['psnr'] == pytest.approx(logs.read_metrics(trained)[-1]['validation/psnr'], abs=0.02)


def test_an_ensemble_predicts_the_mean(trained, model, tmp_path, photos, cli):
    config, task, state = runs.load(model)
    other = shutil.copytree(model, tmp_path / 'other')
    arrays = safetensors.numpy.load_file(model / store.WEIGHTS)
    name = 'params/output/conv/bias'
    assert name in arrays
    arrays[name] = arrays[name] + 1.5
    with safetensors.safe_open(model / store.WEIGHTS, 'numpy') as file:
        safetensors.numpy.save_file(arrays, other / store.WEIGHTS, file.metadata())
    code, out, _ = cli('export', f'--model={model},{other}', f'--out={tmp_path / "both"}')
    assert code == 0 and str(tmp_path / 'both') in out
    config, both, joined = runs.load(tmp_path / 'both')
    assert config.model.members == 2
    lightness = np.random.default_rng(0).uniform(0, 100, (2, 32, 32, 1)).astype(np.float32)
    predictions = [task.predict(each, lightness) for each in (state, runs.load(other)[2])]
    assert np.abs(predictions[0] - predictions[1]).max() > 1
    # The mean of the outputs, which is the mean of a*b*: they are proportional.
    np.testing.assert_allclose(both.predict(joined, lightness), sum(predictions) / 2, rtol=0, atol=ROUNDING)
    # The features of both stand behind one another, and color another photo as each would by itself.
    styles = [task.global_features(each, lightness[:1]) for each in (state, runs.load(other)[2])]
    style = both.global_features(joined, lightness[:1])
    np.testing.assert_allclose(style, np.concatenate(styles, axis=-1), rtol=0, atol=1e-5 * np.abs(style).max())
    expected = sum(
        task.predict(each, lightness[1:], global_features=own)
        for each, own in zip((state, runs.load(other)[2]), styles, strict=True)
    )
    np.testing.assert_allclose(
        both.predict(joined, lightness[1:], global_features=style), expected / 2, rtol=0, atol=ROUNDING
    )


def test_only_networks_of_one_kind_make_an_ensemble(trained, model, tmp_path):
    other = shutil.copytree(trained, tmp_path / 'other')
    config = json.loads((other / 'config.json').read_text())
    config['task']['chroma_gain'] = 2.0
    (other / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match='other is of another kind .* section task'):
        export([trained, other], tmp_path / 'out')
    both = export([model, model], tmp_path / 'both')
    with pytest.raises(UserError, match='is no single ltbc'):
        export([both, model], tmp_path / 'out')
