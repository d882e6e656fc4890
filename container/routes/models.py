"""/v1/models: the one model that is served.

Knows OpenAI's model object. Must not know how it is served.
"""

from typing import Any

from flask import Response

from container.responses import json_response
from container.routes.serving import Serving
from container.schema.sampling import check_model_name
from engine.api import ModelInfo


def list_models(serving: Serving) -> Response:
    """The list of models. Raises EngineNotReady."""
    return json_response({"object": "list", "data": [_model(serving.engine.model().info)]})


def get_model(serving: Serving, name: str) -> Response:
    """One model. Raises ModelNotFound."""
    info = serving.engine.model().info
    check_model_name(name, info)
    return json_response(_model(info))


def _model(info: ModelInfo) -> dict[str, Any]:
    return {
        "id": info.served_name,
        "object": "model",
        "created": info.created_s,
        "owned_by": "galley",
        "max_model_len": info.max_model_len,
    }
