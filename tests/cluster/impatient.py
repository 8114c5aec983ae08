"""Snakemake whose executor looks after its jobs every second, where the plugin waits ten seconds longer each time."""

import asyncio
import sys

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor


async def sleep(self):
    await asyncio.sleep(1.0)


RemoteExecutor.sleep = sleep

if __name__ == "__main__":
    sys.exit(main())
