"""What is installed: distributions on the path, and the plugins that they declare."""

from vllm_ext.discovery.records import ExtensionRecord
from vllm_ext.discovery.scan import scan

__all__ = ["ExtensionRecord", "scan"]
