"""The OpenAPI document of the HTTP API."""

from typing import Any

_ERROR = {'type': 'object', 'required': ['error'], 'properties': {'error': {'type': 'string', 'description': 'a sentence'}}}
_PHOTO = {'type': 'string', 'format': 'binary', 'description': 'the file of a photo, of any format that jaxcolor reads'}
_BINARY = {'schema': {'type': 'string', 'format': 'binary'}}
_WHY = {
    400: 'The form cannot be read.',
    403: 'A page of another site sent it.',
    408: 'The upload took too long.',
    413: 'The upload is too large.',
    415: 'It is no form.',
    422: 'The photo or an option cannot be used.',
    503: 'Too many requests at a time; come again after Retry-After seconds.',
    504: 'Coloring took too long.',
}


def document(names: list[str]) -> dict[str, Any]:
    """The document, OpenAPI 3.1.

    Args:
        names: of the models that can be chosen.
    """
    options = {
        'photo': _PHOTO,
        'model': {'type': 'string', 'enum': names},
        'chroma': {'type': 'number', 'minimum': 0, 'maximum': 10, 'default': 1, 'description': 'multiplies a*b*'},
        'hints': {
            'type': 'string',
            'pattern': r'^(\d{1,5},\d{1,5},#[0-9a-fA-F]{6})(;\d{1,5},\d{1,5},#[0-9a-fA-F]{6})*$',
            'description': 'colors at places, x,y,#rrggbb;...: pixels from the left and from the top of the upright photo',
        },
        'style': {**_PHOTO, 'description': 'the file of a photo whose mood is taken, for models that have `style`'},
    }
    colored = {
        'description': 'What `jaxcolor colorize` writes, of the format that the name Content-Disposition has.',
        'headers': {
            'Content-Disposition': {'schema': {'type': 'string'}},
            'X-Jaxcolor-Notes': {'schema': {'type': 'string'}, 'description': 'a JSON list of sentences, in ASCII'},
        },
        'content': {f'image/{kind}': _BINARY for kind in ('jpeg', 'png', 'tiff', 'webp')},
    }
    preview = {
        'description': 'The photo as a browser shows it.',
        'headers': {name: {'schema': {'type': 'integer'}} for name in ('X-Photo-Width', 'X-Photo-Height')},
        'content': {'image/jpeg': _BINARY},
    }
    return {
        'openapi': '3.1.0',
        'info': {'title': 'jaxcolor', 'version': '1', 'description': 'Colors gray photographs.'},
        'paths': {
            '/api/colorize': _post('Colors a photo.', 'colorize', options, colored),
            '/api/preview': _post('Shows a photo of a format that browsers lack.', 'preview', {'photo': _PHOTO}, preview),
            '/api/models': _get('The models to choose from; the first is the default.', 'models', _models()),
            '/api/health': _get('Whether the server works, and how much it has done.', 'health', _health()),
        },
    }


def _post(summary, name, properties, answer):
    body = {'schema': {'type': 'object', 'required': ['photo'], 'properties': properties}}
    errors = {str(code): _error(why) for code, why in _WHY.items()}
    return {
        'post': {
            'summary': summary,
            'operationId': name,
            'requestBody': {'required': True, 'content': {'multipart/form-data': body}},
            'responses': {'200': answer, **errors},
        }
    }


def _error(why):
    return {'description': why, 'content': {'application/json': {'schema': _ERROR}}}


def _get(summary, name, schema):
    answer = {'description': summary, 'content': {'application/json': {'schema': schema}}}
    return {'get': {'summary': summary, 'operationId': name, 'responses': {'200': answer}}}


def _models():
    model = {'name': {'type': 'string'}, 'style': {'type': 'boolean', 'description': 'whether it takes a style photo'}}
    return {'type': 'array', 'items': {'type': 'object', 'required': list(model), 'properties': model}}


def _health():
    numbers = {
        'requests': 'that are being answered',
        'photos': 'that the network has colored, but those with a style',
        'batches': 'in which it did',
        'mean_batch': 'photos a batch',
    }
    properties = {name: {'type': 'number', 'description': text} for name, text in numbers.items()}
    return {'type': 'object', 'required': ['status', *numbers], 'properties': {'status': {'const': 'ok'}, **properties}}
