"""A bare loop as one would write it with aio-pika and aiohttp: consumes, posts, acks."""

import asyncio
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../scripts"))
from from_pypi import with_packages  # noqa: E402

with_packages("bench-peers", ["aio-pika==10.2.1", "aiohttp==3.14.5"])
import aio_pika  # noqa: E402
import aiohttp  # noqa: E402


async def main(broker, queue, gate, in_flight):
    connection = await aio_pika.connect(broker)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=2 * in_flight)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as client:

        async def handle(message):
            person = json.loads(message.body)["parameters"]["entity"]["user"]["organization_user_id"]
            async with client.post(gate, json={"Gate": "didomi", "GateInput": {"MAIL": person}}) as answer:
                await answer.read()
            await message.ack()

        await (await channel.get_queue(queue, ensure=False)).consume(handle)
        await asyncio.Future()


asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
