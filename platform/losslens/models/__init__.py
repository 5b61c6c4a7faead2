"""Models: transformers configs per architecture, a fast training module, initialisation, export that others load."""

from losslens.models.build import build, initialise, roles
from losslens.models.config import shape_from_config, transformers_config
from losslens.models.export import write_hugging_face
from losslens.models.language_model import LanguageModel

__all__ = ["LanguageModel", "build", "initialise", "roles", "shape_from_config", "transformers_config", "write_hugging_face"]
