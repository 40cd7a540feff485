"""Runs described in YAML: every error at once, each with its line."""

from ._build import abstract_mesh_of as abstract_mesh_of
from ._build import adjusted as adjusted
from ._build import build as build
from ._build import learning_rate as learning_rate
from ._build import learning_rates as learning_rates
from ._build import mesh_of as mesh_of
from ._changes import changes as changes
from ._inputs import MlpModel as MlpModel
from ._inputs import is_masked as is_masked
from ._inputs import parts_of as parts_of
from ._load import changed as changed
from ._load import load as load
from ._load import settings as settings
from ._load import to_yaml as to_yaml
from ._yaml import ConfigError as ConfigError
from .schema import Checkpoint as Checkpoint
from .schema import Config as Config
from .schema import Privacy as Privacy
