"""What a quorum queue loses at its node's restart, by how its messages were taken before. See scripts/measure-brokers.

One round, for every way of taking (a queue each): publish and wait until all are counted; three times let a worker take
so many messages and kill it, then let another one take the first of what is there, ack a random half and kill it; end
the node, start it again, and take everything that is left. A message that was never acked and is not there is lost.

Then a cluster of three, for some numbers of consumers: all connected to its first node, one more to the second, which
leads; the two nodes lose sight of each other for a moment, the one consumer acks half of what it takes meanwhile, and
the first node becomes the leader. No process ends.
"""

import argparse
import base64
import collections
import dataclasses
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import pika

BROKER = pathlib.Path(__file__).parents[2] / "scripts" / "broker"
VERSIONS = ["3.10", "4.0", "4.3"]
DEATHS = 3  # workers killed in one round
ACKER_TAKES = 256  # at most, of the first messages that are there
BODY = b" " * 400


@dataclasses.dataclass(frozen=True)
class Way:
    """How a worker holds its messages when it dies."""

    how: str  # get, cancelled (consumers that were cancelled with deliveries in hand), consuming, page (of management)
    consumers: int  # of one channel; for get, calls
    each: int = 1  # deliveries in hand of one consumer
    channels: int = 1  # of one connection
    connections: int = 1
    closed: bool = False  # in order, before the worker is killed

    @property
    def in_hand(self):
        return self.consumers * self.each * self.channels * self.connections

    @property
    def messages(self):
        return self.in_hand + DEATHS * min(self.in_hand, ACKER_TAKES) + 20

    def __str__(self):
        if self.how == "page":
            return f"{self.consumers} by the management page's \"Get messages\", requeued"
        noun = {"get": "basic.get", "cancelled": "cancelled consumer", "consuming": "consumer"}[self.how]
        text = f"{self.consumers} {noun}{'s' if self.consumers > 1 and self.how != 'get' else ''}"
        if self.each > 1:
            text += f" of {self.each}"
        if self.channels > 1:
            text += f", on each of {self.channels} channels"
        if self.connections > 1:
            text += f", on each of {self.connections} connections"
        if self.closed:
            text += ", then closed in order"
        return text


LIMITS = [20, 28, 30, 31, 32, 33, 36, 40, 60]
WAYS = [
    *(Way("get", n) for n in LIMITS),
    *(Way("cancelled", n) for n in LIMITS),
    *(Way("consuming", n) for n in (32, 33, 60)),
    *(Way("get", n, channels=2) for n in (20, 30, 32, 33)),
    *(Way("get", n, connections=2) for n in (20, 30, 32, 33)),
    *(Way("cancelled", n, channels=2) for n in (32, 33)),
    *(Way("cancelled", n, connections=2) for n in (32, 33)),
    Way("cancelled", 8, each=32),
    Way("consuming", 8, each=32),
    Way("consuming", 1, each=256),
    Way("consuming", 1, each=8, connections=30),
    Way("consuming", 1, each=64, connections=30),
    Way("consuming", 1, each=8, connections=60),
    *(Way("get", n, closed=True) for n in (32, 33, 60)),
    *(Way("page", n) for n in (32, 33, 60)),
]
LARGE = [Way("consuming", 1, each=256, connections=30)]  # not in the quick mode


class Node:
    def __init__(self, version, folder, joins=None):
        self.version, self.folder = version, folder
        self.environment = dict(os.environ, CONSENT_GATE_BROKER_VERSION=version)
        if joins is not None:
            self.environment["CONSENT_GATE_BROKER_JOIN"] = joins.folder
        self.url = self.script("start")
        self.reported = self.evaluate("rabbit_misc:version().").strip('"')

    def script(self, verb, *arguments):
        command = [str(BROKER), verb, self.folder, *arguments]
        ended = subprocess.run(command, env=self.environment, check=True, stdout=subprocess.PIPE, text=True)
        return ended.stdout.strip()

    def serve_page(self):
        """The management page, on loopback."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = pathlib.Path(self.folder)
        (folder / "conf.d" / "page.conf").write_text(f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n")
        (folder / "enabled_plugins").write_text("[rabbitmq_management].")
        self.restart("stop")
        self.page = f"http://127.0.0.1:{port}"

    def get_by_page(self, queue, count):
        """What its button "Get messages" does with the default settings (nack, requeue)."""
        wanted = {"count": count, "ackmode": "ack_requeue_true", "encoding": "auto", "truncate": 50000}
        request = urllib.request.Request(f"{self.page}/api/queues/%2f/{queue}/get", json.dumps(wanted).encode())
        request.add_header("Authorization", "Basic " + base64.b64encode(b"guest:guest").decode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            got = len(json.load(answer))
        if got != count:
            raise SystemExit(f"{got} of {count} messages of {queue}")

    def evaluate(self, erlang):
        return " ".join(self.script("ctl", "eval", erlang).split())

    def restart(self, ending):
        self.script(ending)  # kill or stop
        self.script("start")

    def connect(self):
        # Both timeouts are far longer than anything here takes.
        return pika.BlockingConnection(pika.URLParameters(self.url + "?heartbeat=600&blocked_connection_timeout=60"))


def wait_for(what, condition):
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"waited a minute for {what}")
        time.sleep(0.05)


def ready(channel, queue):
    return channel.queue_declare(queue, passive=True).method.message_count


def number(body):
    return int(body.strip())


# --- workers: processes of their own, to be killed ---------------------------


def killed_after(work):
    """Runs `work` in a process and kills that process when it is done; returns what it wrote, as numbers."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as output:
                work(output)
                output.write("done\n")
                output.flush()
                time.sleep(600)  # with everything in hand, until the kill
        finally:
            os._exit(1)
    os.close(writing)
    lines = []
    with os.fdopen(reading) as output:
        for line in output:
            lines.append(line.strip())
            if lines[-1] == "done":
                break
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    if not lines or lines.pop() != "done":
        raise SystemExit("a worker failed")
    return [tuple(map(int, line.split())) for line in lines]


def take(node, way, queue, kept):
    """Takes messages and keeps them in hand."""
    if way.how == "page":
        node.get_by_page(queue, way.consumers)
        return
    for _ in range(way.connections):
        connection = node.connect()
        kept.append(connection)
        for _ in range(way.channels):
            channel = connection.channel()
            kept.append(channel)
            if way.how == "get":
                for _ in range(way.consumers):
                    if channel.basic_get(queue)[0] is None:
                        raise SystemExit(f"{queue} is empty")
                continue
            channel.basic_qos(prefetch_count=way.each)
            seen = []
            for nth in range(1, way.consumers + 1):
                tag = channel.basic_consume(queue, lambda *delivery: seen.append(delivery))
                fill(connection, seen, nth * way.each)
                if way.how == "cancelled":
                    channel.basic_cancel(tag)
        if way.closed:
            connection.close()


def fill(connection, seen, wanted):
    until = time.monotonic() + 60
    while len(seen) < wanted:
        if time.monotonic() > until:
            raise SystemExit(f"{len(seen)} of {wanted} deliveries")
        connection.process_data_events(0.02)


def watch(connection):
    """Handles everything that arrives within a second."""
    until = time.monotonic() + 1
    while time.monotonic() < until:
        connection.process_data_events(0.1)


def take_all_ways(node, queues):
    def work(_output):
        kept = []
        for queue, way in queues.items():
            take(node, way, queue, kept)

    killed_after(work)


def ack_some(node, queues, seed):
    """Takes the first messages of each queue by one consumer and acks half of them; returns the acked ones by queue."""
    names = list(queues)

    def work(output):
        chance, kept = random.Random(seed), []
        connection = node.connect()
        for nth, queue in enumerate(names):
            channel = connection.channel()
            kept.append(channel)
            wanted, seen = min(queues[queue].in_hand, ACKER_TAKES), []
            channel.basic_qos(prefetch_count=wanted)
            tag = channel.basic_consume(queue, lambda *delivery: seen.append(delivery))
            fill(connection, seen, wanted)
            channel.basic_cancel(tag)
            chosen = sorted(chance.sample(seen, wanted // 2), key=lambda one: one[1].delivery_tag)
            for count, (_, method, _, body) in enumerate(chosen):
                channel.basic_ack(method.delivery_tag)
                output.write(f"{nth} {number(body)}\n")
                if count % 16 == 15:  # a broker's channel holds acks back when the queue is behind
                    ready(channel, queue)
            ready(channel, queue)
        watch(connection)

    acked = collections.defaultdict(set)
    for nth, message in killed_after(work):
        acked[names[nth]].add(message)
    return acked


# --- one round ---------------------------------------------------------------


def declare(channel, queue, unreadable):
    """Like the worker's own queues, but with a high delivery limit."""
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1000, "x-overflow": "reject-publish"}
    arguments |= {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": unreadable}
    arguments |= {"x-dead-letter-strategy": "at-least-once"}
    channel.queue_declare(queue, durable=True, arguments=arguments)


def drain(node, queues):
    """All messages in these queues, by queue; `queues` has the number expected in each."""
    there, last = {queue: [] for queue in queues}, [time.monotonic()]
    connection = node.connect()
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1000)
    for queue in queues:

        def seen(_channel, _method, _properties, body, queue=queue):
            there[queue].append(number(body))
            last[0] = time.monotonic()

        channel.basic_consume(queue, seen, auto_ack=True)
    while True:
        connection.process_data_events(0.2)
        silent = time.monotonic() - last[0]
        missing = any(len(there[queue]) < expected for queue, expected in queues.items())
        if silent > (20 if missing else 1):  # a node that has just started gets time
            break
    connection.close()
    return there


def one_round(node, ways, ending, seed):
    """Messages that are lost, and messages that are there although they were acked, by way."""
    queues = {f"measure.{nth}": way for nth, way in enumerate(ways)}
    unreadable = "measure.unreadable"
    connection = node.connect()
    channel = connection.channel()
    channel.queue_declare(unreadable, durable=True, arguments={"x-queue-type": "quorum"})
    for queue in queues:
        declare(channel, queue, unreadable)
    time.sleep(3)  # a queue declared just before a kill can come back empty
    persistent = pika.BasicProperties(delivery_mode=2)
    for queue, way in queues.items():
        for message in range(way.messages):
            channel.basic_publish("", queue, b"%d" % message + BODY, persistent)
    acked = collections.defaultdict(set)

    def all_back(queue, way, event):
        expected = way.messages - len(acked[queue])
        wait_for(f"{expected} messages in {queue} ({way}), {event}", lambda: ready(channel, queue) == expected)

    for queue, way in queues.items():
        all_back(queue, way, "published")
    for nth in range(DEATHS):
        take_all_ways(node, queues)
        for queue, way in queues.items():
            all_back(queue, way, f"after death {nth + 1}")
        for queue, messages in ack_some(node, queues, f"{seed} {nth}").items():
            acked[queue] |= messages
        for queue, way in queues.items():
            all_back(queue, way, f"after acks {nth + 1}")
    connection.close()

    if ending != "alone":
        node.restart(ending)
    left = {queue: way.messages - len(acked[queue]) for queue, way in queues.items()}
    there = drain(node, left | {unreadable: 0})
    if there.pop(unreadable):
        raise SystemExit("the broker gave up on a message")
    results = {}
    for queue, way in queues.items():
        present = set(there[queue])
        lost = set(range(way.messages)) - present - acked[queue]
        results[way] = (len(lost), len(present & acked[queue]))
    connection = node.connect()
    channel = connection.channel()
    for queue in [*queues, unreadable]:
        channel.queue_delete(queue)
    connection.close()
    return results


# --- what consumers of one channel do ----------------------------------------


def facts(node):
    """Yields a sentence and whether it holds."""
    connection = node.connect()
    channel = connection.channel()
    queue = "measure.facts"
    declare(channel, queue, queue)
    time.sleep(3)
    for message in range(30):
        channel.basic_publish("", queue, b"%d" % message, pika.BasicProperties(delivery_mode=2))
    wait_for("30 messages", lambda: ready(channel, queue) == 30)

    first, second = [], []
    channel.basic_qos(prefetch_count=3)
    one = channel.basic_consume(queue, lambda *delivery: first.append(delivery))
    fill(connection, first, 3)
    channel.basic_qos(prefetch_count=7)
    watch(connection)
    yield "a new basic.qos changes nothing for a consumer that is there", len(first) == 3
    other = channel.basic_consume(queue, lambda *delivery: second.append(delivery))
    watch(connection)
    yield "the next consumer of the same channel has it", (len(first), len(second)) == (3, 7)
    channel.basic_ack(first[0][1].delivery_tag)
    watch(connection)
    yield "an acked delivery is replaced by one for the same consumer", (len(first), len(second)) == (4, 7)

    channel.basic_cancel(one)
    channel.basic_cancel(other)
    watch(connection)
    yield "what cancelled consumers have in hand stays in hand", ready(channel, queue) == 30 - 11
    gone = {number(body) for _, _, _, body in first[:3] + second[:3]}
    for _, method, _, _ in first[1:3] + second[:3]:
        channel.basic_ack(method.delivery_tag)
    ready(channel, queue)
    watch(connection)
    connection.close()
    connection = node.connect()
    channel = connection.channel()
    wait_for("what was not acked", lambda: ready(channel, queue) == 30 - 6)
    connection.close()
    node.restart("kill")
    left = drain(node, {queue: 30 - 6})[queue]
    yield "and can be acked, for good", sorted(left) == sorted(set(range(30)) - gone)
    connection = node.connect()
    connection.channel().queue_delete(queue)
    connection.close()


# Consumers are a map in the queue's state. Erlang keeps up to 32 keys of a map in their own order, and more in the
# order of their hashes; after a restart of the node, a process of its earlier life has another hash than before.
ORDERS = """
    Now = self(), Size = byte_size(term_to_binary(Now)) - 4, <<Same:Size/binary, Life:32>> = term_to_binary(Now),
    Then = binary_to_term(<<Same/binary, (Life - 1):32>>),
    Order = fun(Pid, N) -> [Nth || {Nth, _} <- maps:keys(maps:from_list([{{Nth, Pid}, 0} || Nth <- lists:seq(1, N)]))] end,
    {[N || N <- lists:seq(2, 64), Order(Now, N) =:= Order(Then, N)], maps:keys(maps:from_list([{N, 0} || N <- lists:seq(1, 64)]))}.
"""


def orders(node):
    """The number of consumers of one channel up to which their map has the same order as before the node's restart."""
    same = "lists:max(element(1, begin " + ORDERS.strip().rstrip(".") + " end))."
    numbers = "element(2, begin " + ORDERS.strip().rstrip(".") + " end)."
    return node.evaluate(same), node.evaluate(numbers)


# --- a cluster whose nodes lose sight of each other --------------------------

CONSUMERS = [20, 30, 31, 32, 40, 60]  # connected to the first node; with the one at the second one more
EACH = 4  # deliveries in hand of one consumer


@dataclasses.dataclass
class Crowd:
    """The consumers of one queue."""

    size: int
    connections: list
    other: pika.BlockingConnection  # at the second node
    channel: pika.adapters.blocking_connection.BlockingChannel
    taken: list  # by the other
    acked: set = dataclasses.field(default_factory=set)


def gather(first, second, queue, size):
    connection = second.connect()
    channel = connection.channel()
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1000, "x-queue-leader-locator": "client-local"}
    channel.queue_declare(queue, durable=True, arguments=arguments)
    time.sleep(3)
    for message in range(size * EACH):
        channel.basic_publish("", queue, b"%d" % message, pika.BasicProperties(delivery_mode=2))
    wait_for(f"{size * EACH} messages", lambda: ready(channel, queue) == size * EACH)
    connections = []
    for _ in range(size):
        connections.append(first.connect())
        consuming, seen = connections[-1].channel(), []
        consuming.basic_qos(prefetch_count=EACH)
        consuming.basic_consume(queue, lambda *delivery, seen=seen: seen.append(delivery))
        fill(connections[-1], seen, EACH)
    taken = []
    channel.basic_qos(prefetch_count=size * 2)
    channel.basic_consume(queue, lambda *delivery: taken.append(delivery))
    return Crowd(size, connections, connection, channel, taken)


def part(version):
    """Messages lost, and acked by the one consumer, by number of consumers."""
    folder, nodes = tempfile.mkdtemp(prefix="measure-brokers-"), []
    try:
        for name in "abc":
            nodes.append(Node(version, f"{folder}/{name}", nodes[0] if nodes else None))
        first, second, _ = nodes
        crowds = {f"measure.{size}": gather(first, second, f"measure.{size}", size) for size in CONSUMERS}
        name = (pathlib.Path(first.folder) / "name").read_text().strip() + "@localhost"
        second.evaluate(f"erlang:disconnect_node('{name}').")
        time.sleep(8)
        for queue, crowd in crowds.items():
            watch(crowd.other)
            for count, (_, method, _, body) in enumerate(crowd.taken[: crowd.size]):
                crowd.channel.basic_ack(method.delivery_tag)
                crowd.acked.add(number(body))
                if count % 16 == 15:
                    ready(crowd.channel, queue)
            watch(crowd.other)
        for queue in crowds:
            leader = f"{{_, Leader}} = ra_leaderboard:lookup_leader('%2F_{queue}')"
            second.evaluate(f"{leader}, ra:transfer_leadership({{'%2F_{queue}', Leader}}, {{'%2F_{queue}', '{name}'}}).")
        time.sleep(3)
        for crowd in crowds.values():
            for connection in [*crowd.connections, crowd.other]:
                connection.close()
        there = drain(first, {queue: crowd.size * EACH - len(crowd.acked) for queue, crowd in crowds.items()})
        results = {}
        for queue, crowd in crowds.items():
            lost = set(range(crowd.size * EACH)) - set(there[queue]) - crowd.acked
            results[crowd.size] = (len(lost), len(crowd.acked))
        return results
    finally:
        for node in reversed(nodes):
            node.script("remove")
        shutil.rmtree(folder, ignore_errors=True)


def measure_cluster(version, rounds):
    results = collections.defaultdict(list)
    for _ in range(rounds):
        for size, result in part(version).items():
            results[size].append(result)
    print(f"\nA cluster of RabbitMQ {version} whose nodes lose sight of each other, rounds: {rounds}:\n")
    print("| consumers of one queue | messages | acked by the one | lost |\n|---|---|---|---|")
    for size, rounds_of in results.items():
        lost, acked = (span(numbers) for numbers in zip(*rounds_of))
        print(f"| {size} at one node, one at another | {size * EACH} | {acked} | {lost} |", flush=True)


# --- all of it ---------------------------------------------------------------


def span(numbers):
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def measure(version, plan, ways, seed):
    folder = tempfile.mkdtemp(prefix="measure-brokers-")
    node = Node(version, folder)
    try:
        node.serve_page()
        started = time.monotonic()
        print(f"\n## RabbitMQ {node.reported}\n", flush=True)
        same, numbers = orders(node)
        for sentence, holds in facts(node):
            print(f"- {'yes' if holds else 'NO'}: {sentence}", flush=True)
        print(f"- consumers known by process and tag: the order of up to {same} is kept by a restart")
        print(f"- consumers known by number: {'kept' if orders(node)[1] == numbers else 'not kept'} (64)\n", flush=True)
        results = collections.defaultdict(lambda: collections.defaultdict(list))
        for nth, ending in enumerate(plan):
            for way, result in one_round(node, ways, ending, f"{seed} {version} {nth}").items():
                results[way][ending].append(result)
            took = time.monotonic() - started
            print(f"{version}: round {nth + 1} of {len(plan)} ({ending}), {took:.0f} s", file=sys.stderr, flush=True)
        endings = list(dict.fromkeys(plan))
        print("| in hand | messages |", " | ".join(f"{e}: lost" for e in endings), "|")
        print("|---|---|" + "---|" * len(endings))
        for way, by_ending in results.items():
            cells = (span([lost for lost, _ in by_ending[ending]]) for ending in endings)
            print(f"| {way} | {way.messages} |", " | ".join(cells), "|")
        again = sum(back for by in results.values() for rounds in by.values() for _, back in rounds)
        print(f"\nThere although acked, all rounds: {again}", flush=True)
    finally:
        node.script("remove")
        shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(prog="scripts/measure-brokers", description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="3.10, 4.0, 4.3; default all")
    parser.add_argument("--quick", action="store_true", help="a round each, without the largest: some minutes")
    parser.add_argument("--cluster", action="store_true", help="only the cluster")
    parser.add_argument("--rounds", type=int, default=4, help="with a killed node, and as many with a stopped one")
    parser.add_argument("--seed", type=int, default=18)
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    plan = [*itertools.chain.from_iterable([("kill", "stop")] * rounds), *([] if options.quick else ["alone"])]
    ways = WAYS if options.quick else WAYS + LARGE
    print(f"{time.strftime('%Y-%m-%d')}, seed {options.seed}; a round: {DEATHS} times one worker takes, another acks")
    print("rounds: " + ", ".join(f"{plan.count(ending)} {ending}" for ending in dict.fromkeys(plan)))
    for version in options.versions:
        if not options.cluster:
            measure(version, plan, ways, options.seed)
        measure_cluster(version, 1 if options.quick else 2)


main()
