"""Where the chunks of a stream are kept: tiers with byte budgets, from the compute device down to disk."""

from memory.bank import MemoryBank
from memory.base import Bank, Span, Store
from memory.durable import DurableBank
from memory.opening import open_memory
from memory.plain import PlainBank
from memory.segments import DiskStore
from memory.stores import DeviceStore, RamStore

__all__ = [
    "Bank",
    "DeviceStore",
    "DiskStore",
    "DurableBank",
    "MemoryBank",
    "PlainBank",
    "RamStore",
    "Span",
    "Store",
    "open_memory",
]
