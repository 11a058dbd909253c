// A bare loop as one would write it with amqplib and undici: consumes, posts, acks.
const amqp = require("amqplib");
const { Pool } = require("undici");

async function main(broker, queue, gate, inFlight) {
  const channel = await (await amqp.connect(broker)).createChannel();
  await channel.prefetch(2 * inFlight);
  const pool = new Pool(gate, { connections: inFlight });
  await channel.consume(queue, async (message) => {
    const person = JSON.parse(message.content).parameters.entity.user.organization_user_id;
    const answer = await pool.request({
      path: "/",
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ Gate: "didomi", GateInput: { MAIL: person } }),
    });
    await answer.body.text();
    channel.ack(message);
  });
}

const [broker, queue, gate, inFlight] = process.argv.slice(2);
main(broker, queue, gate, Number(inFlight));
