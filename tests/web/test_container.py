"""The container's file and its Kubernetes objects, by linters, and command by command without a container (marker `web`).

No container engine is needed; what one would add, the isolation, is not tested.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import PHOTOS, ROOT

pytestmark = pytest.mark.web
FILE = ROOT / 'launch' / 'Containerfile'
MANIFEST = ROOT / 'launch' / 'k8s' / 'serve.yaml'


def for_all(path):
    """Whether other users than root can start a program."""
    real = Path(path).resolve()
    return real.exists() and all(each.stat().st_mode & 0o001 for each in (real, *real.parents))


# An interpreter that the container's user can start; without one, or without being root, its commands run as this user.
PYTHON = next((each for each in (sys.executable, '/usr/bin/python3') if os.getuid() == 0 and for_all(each)), None)


def instructions():
    """[(keyword, the rest)] of the file, continued lines joined."""
    text = re.sub(r'^#.*\n', '', FILE.read_text(), flags=re.MULTILINE).replace('\\\n', ' ')
    return [(line.partition(' ')[0], line.partition(' ')[2].strip()) for line in text.splitlines() if line.strip()]


def value(keyword):
    return [rest for name, rest in instructions() if name == keyword][-1]


def test_the_linter_is_content():
    hadolint = Path(sys.executable).with_name('hadolint')
    done = subprocess.run([hadolint, '--failure-threshold=style', FILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_kubernetes_objects_are_valid_and_fit_the_container():
    import kubernetes_validate
    import yaml

    deployment, service = yaml.safe_load_all(MANIFEST.read_text())
    for each in (deployment, service):
        kubernetes_validate.validate(each, '1.30', strict=True)
    pod = deployment['spec']['template']
    assert service['spec']['selector'].items() <= pod['metadata']['labels'].items()
    (container,) = pod['spec']['containers']
    (port,) = container['ports']
    assert str(port['containerPort']) == value('EXPOSE') and f'--port={value("EXPOSE")}' in container['args']
    assert service['spec']['ports'][0]['targetPort'] == port['name']
    assert str(pod['spec']['securityContext']['runAsUser']) == value('USER')
    assert {mount['mountPath'] for mount in container['volumeMounts']} == {'/tmp', cache_folder()}
    paths = {container[probe]['httpGet']['path'] for probe in ('startupProbe', 'readinessProbe', 'livenessProbe')}
    assert paths == {'/api/health'} and '/api/health' in value('HEALTHCHECK')


def cache_folder():
    return re.search(r'JAXCOLOR_CACHE=(\S+)', value('ENV'))[1]


@contextlib.contextmanager
def fresh_root():
    """A folder with an environment of Python that stands for the image's, readable for all users."""
    root = Path(tempfile.mkdtemp(prefix='container-'))
    try:
        root.chmod(0o755)
        subprocess.run([PYTHON or sys.executable, '-m', 'venv', root / 'python'], check=True)
        yield root
    finally:
        shutil.rmtree(root)


def test_its_commands_run_in_order_and_the_server_answers(tmp_path):
    """COPY and RUN below a folder instead of `/`, then ENTRYPOINT and HEALTHCHECK, as the user that USER names."""
    with fresh_root() as root:
        variables = {'PATH': f'{root}/python/bin:{os.environ["PATH"]}', 'HOME': '/nonexistent', 'EXTRA': ''}
        variables |= {name: each for name, each in os.environ.items() if name.startswith('PIP_')}

        def below(text):
            return re.sub(r'(?<![\w.])/(source|wheels|var/cache/jaxcolor)\b', rf'{root}/\1', text)

        for keyword, rest in instructions():
            if keyword == 'COPY':
                *names, target = rest.split()
                for name in names:
                    copy(ROOT / name, Path(below(target)), is_folder=len(names) > 1)
            elif keyword == 'RUN':
                for command in re.sub(r'--mount=\S+', '', rest).split('&&'):
                    if 'useradd' in command:
                        assert f'--uid={value("USER")}' in command
                    elif command.split()[0] == 'install':
                        (root / cache_folder().strip('/')).mkdir(parents=True)
                        if PYTHON:
                            os.chown(root / cache_folder().strip('/'), int(value('USER')), -1)
                    else:
                        shell = ['sh', '-ec', below(command)]
                        done = subprocess.run(shell, env=variables, cwd=root, capture_output=True, text=True, timeout=900)
                        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            elif keyword == 'ENV':
                variables |= dict(word.split('=') for word in below(rest).split())
        shutil.rmtree(root / 'source')  # the second stage has none of it

        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        command = [*json.loads(value('ENTRYPOINT')), *json.loads(value('CMD')), f'--port={port}']
        user = {'user': int(value('USER')), 'group': int(value('USER')), 'extra_groups': []} if PYTHON else {}
        (tmp_path / 'log').touch()
        with open(tmp_path / 'log', 'w') as log:
            server = subprocess.Popen(command, env=variables, cwd='/', stderr=log, stdout=log, **user)
        check = json.loads(value('HEALTHCHECK').partition('CMD')[2].replace(value('EXPOSE'), str(port)))
        try:
            for _ in range(240):
                healthy = subprocess.run(check, env=variables, cwd='/', capture_output=True, **user)
                if healthy.returncode == 0 or server.poll() is not None:
                    break
                time.sleep(0.5)
            assert healthy.returncode == 0, (tmp_path / 'log').read_text()
            assert colored(port).startswith(b'\xff\xd8')
            assert list((root / cache_folder().strip('/')).iterdir()), 'nothing was kept of what was compiled'
        finally:
            server.terminate()
            assert server.wait(60) in (0, -15), (tmp_path / 'log').read_text()


def copy(source, target, is_folder):
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target / source.name if is_folder else target)


def colored(port):
    photo = next(iter(sorted(PHOTOS.rglob('*.jpg')))).read_bytes()
    body = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n' + photo + b'\r\n--b--\r\n'
    headers = {'Content-Type': 'multipart/form-data; boundary=b'}
    with urllib.request.urlopen(urllib.request.Request(f'http://127.0.0.1:{port}/api/colorize', body, headers)) as answer:
        return answer.read()
