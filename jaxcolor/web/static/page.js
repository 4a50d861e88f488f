import { zip } from './zip.js';

const MAX_PHOTOS = 100, AT_ONCE = 4, MAX_ZIP = 2 ** 32 - 2 ** 20;
const get = (id) => document.getElementById(id);
const photos = []; // in their order on the page
let running = 0;
let models = [];

// -- Requests ---------------------------------------------------------------------------------------------------------

// Sends a form; tell(sentence) says how far it is -> {blob, headers}. Throws an Error with a sentence.
function post(path, form, tell, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open('POST', path);
    request.responseType = 'blob';
    request.upload.onprogress = (event) => {
      if (event.lengthComputable && event.loaded < event.total) tell(`Uploading, ${Math.round((100 * event.loaded) / event.total)} %`);
    };
    request.upload.onload = () => tell('Coloring …');
    request.onload = async () => {
      if (request.status === 200) return resolve({ blob: request.response, header: (name) => request.getResponseHeader(name) });
      const error = new Error(await sentence(request.response, request.status));
      error.again = request.status === 503 ? 1000 * (request.getResponseHeader('Retry-After') || 2) : 0;
      reject(error);
    };
    request.onerror = () => reject(new Error('The server cannot be reached, or it refused the upload.'));
    request.onabort = () => reject(new Error('It was removed.'));
    signal.addEventListener('abort', () => request.abort());
    request.send(form);
  });
}

async function sentence(blob, status) {
  try {
    return JSON.parse(await blob.text()).error;
  } catch {
    return `The server answered with code ${status}.`;
  }
}

// -- The queue --------------------------------------------------------------------------------------------------------

function enqueue(photo) {
  photo.abort?.abort();
  photo.phase = 'waiting';
  tell(photo, 'Waiting …');
  next();
}

function next() {
  for (const photo of photos) {
    if (running >= AT_ONCE) break;
    if (photo.phase === 'waiting') color(photo);
  }
  summary();
}

async function color(photo) {
  const abort = (photo.abort = new AbortController());
  const form = new FormData();
  // The other fields first, so that they are there when the photo has come.
  form.append('model', get('model').value);
  form.append('chroma', get('chroma').value);
  const hints = photo.hints.map(({ x, y, color }) => `${x},${y},${color}`).join(';');
  if (hints) form.append('hints', hints);
  if (get('style').files[0] && !get('style-field').hidden) form.append('style', get('style').files[0]);
  form.append('photo', photo.file);
  photo.phase = 'running';
  running++;
  const start = performance.now();
  try {
    const { blob, header } = await post('/api/colorize', form, (text) => abort === photo.abort && tell(photo, text), abort.signal);
    if (abort !== photo.abort) return;
    photo.name = decodeURIComponent((header('Content-Disposition') || '').split("''")[1] || photo.file.name);
    photo.blob = blob;
    photo.phase = 'done';
    await show(photo, JSON.parse(header('X-Jaxcolor-Notes') || '[]'), (performance.now() - start) / 1000);
  } catch (error) {
    if (abort !== photo.abort) return;
    if (error.again) {
      photo.phase = 'later';
      tell(photo, 'The server is busy; waiting …');
      setTimeout(() => abort === photo.abort && photo.phase === 'later' && enqueue(photo), error.again);
    } else {
      photo.phase = 'failed';
      fail(photo, error.message);
    }
  } finally {
    running--;
    next();
  }
}

// -- Cards ------------------------------------------------------------------------------------------------------------

function add(files) {
  const room = MAX_PHOTOS - photos.length;
  for (const file of [...files].slice(0, room)) {
    const card = get('card').content.firstElementChild.cloneNode(true);
    const part = (name) => card.querySelector(`.${name}`);
    const photo = { file, card, part, hints: [], name: file.name, phase: 'waiting', urls: new Map() };
    part('name').textContent = file.name;
    part('gray').alt = `${file.name} in gray`;
    part('colored').alt = `${file.name} in color`;
    part('slide').setAttribute('aria-label', `how much of ${file.name} is gray`);
    part('slide').oninput = () => slide(photo);
    part('hint').onclick = () => point(photo, part('hint').getAttribute('aria-pressed') !== 'true');
    part('compare').onclick = (event) => addHint(photo, event);
    part('retry').onclick = () => enqueue(photo);
    part('remove').onclick = () => remove(photo);
    // Browsers do not show all formats; then the gray of the result is shown when it comes.
    part('gray').onerror = () => (part('gray').hidden = true);
    part('gray').onload = () => (part('gray').hidden = false);
    setImage(photo, 'gray', file);
    photos.push(photo);
    get('photos').append(card);
    tell(photo, 'Waiting …');
  }
  next();
  if (files.length > room) get('status').textContent = `This page takes ${MAX_PHOTOS} photos at a time; ${files.length - room} were left out.`;
}

function setImage(photo, name, blob) {
  URL.revokeObjectURL(photo.urls.get(name));
  photo.urls.set(name, URL.createObjectURL(blob));
  photo.part(name).src = photo.urls.get(name);
}

function tell(photo, text) {
  photo.card.classList.remove('failed', 'still');
  photo.part('retry').hidden = true;
  photo.part('veil').hidden = false;
  photo.part('doing').textContent = text;
  photo.part('state').textContent = text;
}

function fail(photo, text) {
  photo.card.classList.add('failed', 'still');
  photo.part('state').textContent = text;
  photo.part('doing').textContent = photo.blob ? '' : 'Not colored';
  photo.part('veil').hidden = Boolean(photo.blob);
  photo.part('retry').hidden = false;
}

async function show(photo, notes, seconds) {
  const { part } = photo;
  part('doing').textContent = 'Showing …';
  setImage(photo, 'colored', photo.blob);
  let size;
  try {
    await part('colored').decode();
    size = [part('colored').naturalWidth, part('colored').naturalHeight];
    setImage(photo, 'gray', photo.blob);
  } catch {
    size = await preview(photo);
  }
  part('download').href = photo.urls.get('result') || photo.urls.get('colored');
  part('download').download = photo.name;
  part('download').hidden = false;
  part('veil').hidden = true;
  photo.size = size;
  for (const name of ['colored', 'line']) part(name).hidden = !size;
  part('slide').disabled = part('hint').disabled = !size;
  const about = size ? `${size[0]} × ${size[1]} pixels, ` : 'This browser cannot show it; ';
  part('state').textContent = `${about}${Math.ceil(photo.blob.size / 1000)} kB, in ${seconds.toFixed(1)} s`;
  part('notes').replaceChildren(...notes.map((text) => Object.assign(document.createElement('li'), { textContent: text })));
  slide(photo);
  draw(photo);
}

// TIFF and the like, as a JPEG -> the photo's own size.
async function preview(photo) {
  URL.revokeObjectURL(photo.urls.get('result'));
  photo.urls.set('result', URL.createObjectURL(photo.blob));
  const form = new FormData();
  form.append('photo', photo.blob, photo.name);
  try {
    const { blob, header } = await post('/api/preview', form, () => {}, photo.abort.signal);
    setImage(photo, 'colored', blob);
    setImage(photo, 'gray', blob);
    return [Number(header('X-Photo-Width')), Number(header('X-Photo-Height'))];
  } catch {
    return undefined;
  }
}

function slide(photo) {
  const at = photo.part('slide').value;
  photo.part('compare').style.setProperty('--at', `${at}%`);
  photo.part('slide').setAttribute('aria-valuetext', `${at} % gray`);
}

function remove(photo) {
  photo.abort?.abort();
  photo.abort = undefined;
  for (const url of photo.urls.values()) URL.revokeObjectURL(url);
  photo.card.remove();
  photos.splice(photos.indexOf(photo), 1);
  next();
  get('files').focus();
}

// -- Hints ------------------------------------------------------------------------------------------------------------

function point(photo, on) {
  const { part } = photo;
  part('hint').setAttribute('aria-pressed', on);
  part('hint').textContent = on ? 'Done' : 'Hint a color';
  part('compare').classList.toggle('pointing', on);
  part('hints').hidden = !on && !photo.hints.length;
  // By keyboard a hint starts in the middle.
  if (on && !photo.hints.length && part('hint').matches(':focus-visible')) newHint(photo, photo.size[0] >> 1, photo.size[1] >> 1);
}

function addHint(photo, event) {
  if (!photo.part('compare').classList.contains('pointing') || !photo.size) return;
  const box = photo.part('compare').getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  newHint(photo, Math.floor(x * photo.size[0]), Math.floor(y * photo.size[1]));
}

function newHint(photo, x, y) {
  const hint = { x: clamp(x, photo.size[0]), y: clamp(y, photo.size[1]), color: photo.hints.at(-1)?.color || '#a03030' };
  const row = get('point').content.firstElementChild.cloneNode(true);
  const part = (name) => row.querySelector(`.${name}`);
  [part('color').value, part('x').value, part('y').value] = [hint.color, hint.x, hint.y];
  part('color').oninput = () => changed(photo, hint, { color: part('color').value });
  part('x').onchange = () => changed(photo, hint, { x: (part('x').value = clamp(part('x').value, photo.size[0])) });
  part('y').onchange = () => changed(photo, hint, { y: (part('y').value = clamp(part('y').value, photo.size[1])) });
  part('drop-point').onclick = () => {
    photo.hints.splice(photo.hints.indexOf(hint), 1);
    row.remove();
    changed(photo, hint, {});
    photo.part('hint').focus();
  };
  photo.hints.push(hint);
  photo.part('points').append(row);
  changed(photo, hint, {});
  part('color').focus();
}

const clamp = (value, size) => Math.max(0, Math.min(size - 1, Math.round(Number(value) || 0)));

function changed(photo, hint, values) {
  Object.assign(hint, values);
  draw(photo);
  clearTimeout(photo.timer);
  photo.timer = setTimeout(() => photos.includes(photo) && enqueue(photo), 500);
}

function draw(photo) {
  photo.part('marks').replaceChildren(
    ...photo.hints.map(({ x, y, color }) => {
      const mark = Object.assign(document.createElement('span'), { className: 'mark' });
      mark.style.left = `${(100 * (x + 0.5)) / photo.size[0]}%`;
      mark.style.top = `${(100 * (y + 0.5)) / photo.size[1]}%`;
      mark.style.background = color;
      return mark;
    }),
  );
}

// -- All of them ------------------------------------------------------------------------------------------------------

function summary() {
  const count = (...phases) => photos.filter((photo) => phases.includes(photo.phase)).length;
  const [done, failed, busy] = [count('done'), count('failed'), count('waiting', 'running', 'later')];
  const parts = [`${done} of ${photos.length} colored`];
  if (busy) parts.push(`${busy} to do`);
  if (failed) parts.push(`${failed} could not be colored`);
  get('status').textContent = photos.length ? `${parts.join(', ')}.` : 'No photos yet.';
  get('again').disabled = !photos.length;
  get('zip').disabled = busy > 0 || !photos.some((photo) => photo.blob);
  document.title = busy ? `(${done}/${photos.length}) jaxcolor` : 'jaxcolor';
}

async function downloadAll() {
  const taken = new Set(), files = [];
  for (const { name, blob } of photos.filter((photo) => photo.blob)) {
    const [, stem, suffix] = name.match(/^(.*?)(\.[^.]*)?$/s);
    let free = name;
    for (let n = 2; taken.has(free.toLowerCase()); n++) free = `${stem}-${n}${suffix || ''}`;
    taken.add(free.toLowerCase());
    files.push({ name: free, blob });
  }
  if (files.reduce((sum, { blob }) => sum + blob.size, 0) > MAX_ZIP) {
    get('status').textContent = 'Together they are more than 4 GB; download them one by one.';
    return;
  }
  get('status').textContent = 'Packing …';
  const url = URL.createObjectURL(await zip(files));
  Object.assign(document.createElement('a'), { href: url, download: 'colored.zip' }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  summary();
}

function settings() {
  get('chroma-value').textContent = Number(get('chroma').value).toFixed(2);
  get('style-field').hidden = !models.find((model) => model.name === get('model').value)?.style;
  const [style] = get('style').files;
  get('style-name').textContent = style ? style.name : 'Choose';
  get('style-clear').hidden = !style;
}

get('files').onchange = () => {
  add(get('files').files);
  get('files').value = '';
};
for (const id of ['model', 'chroma', 'style']) get(id).oninput = settings;
get('style-clear').onclick = () => {
  get('style').value = '';
  settings();
};
get('again').onclick = () => photos.forEach(enqueue);
get('zip').onclick = downloadAll;
addEventListener('dragover', (event) => {
  event.preventDefault();
  get('drop').classList.add('over');
});
addEventListener('dragleave', () => get('drop').classList.remove('over'));
addEventListener('drop', (event) => {
  event.preventDefault();
  get('drop').classList.remove('over');
  add(event.dataTransfer.files);
});
addEventListener('paste', (event) => add(event.clipboardData.files));

try {
  models = await (await fetch('/api/models')).json();
  get('model').replaceChildren(...models.map(({ name }) => new Option(name, name)));
} catch {
  get('status').textContent = 'The server cannot be reached.';
}
settings();
