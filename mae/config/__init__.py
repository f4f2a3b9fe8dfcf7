"""Typed job configs: one YAML file per job. Read sections.py first, then load.py.

protocols.py finds the evaluation protocols, whose sections a config may have.
"""

from mae.config.load import load_config
from mae.config.protocols import protocols
from mae.config.sections import Config, DataConfig, DeviceConfig, Target

__all__ = ["Config", "DataConfig", "DeviceConfig", "Target", "load_config", "protocols"]
