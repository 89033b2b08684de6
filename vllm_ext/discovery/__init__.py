"""What is installed: distributions on the path, the plugins that they declare, and what is wrong with them."""

from vllm_ext.discovery.builtin import builtin_platforms
from vllm_ext.discovery.examine import examine
from vllm_ext.discovery.findings import Finding
from vllm_ext.discovery.providers import Provider, find_providers
from vllm_ext.discovery.records import ExtensionRecord
from vllm_ext.discovery.scan import scan

__all__ = ["ExtensionRecord", "Finding", "Provider", "builtin_platforms", "examine", "find_providers", "scan"]
