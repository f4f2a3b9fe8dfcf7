"""Typed job configs: one YAML file per job. Read sections.py first, then load.py.

protocols.py finds the evaluation protocols, whose sections a config may have.
"""

from mae.config.load import dump_config, load_config, parse_config
from mae.config.sections import Config, DeviceConfig, ModelConfig

__all__ = ["Config", "DeviceConfig", "ModelConfig", "dump_config", "load_config", "parse_config"]
