// A backend as one stands behind Twilio: Twilio's package checks each request's signature and writes each
// answer. Nothing in here knows of Bellwire. It prints what it was asked, a line of JSON for each request.
const express = require("express");
const twilio = require("twilio");

const app = express();
app.use(express.urlencoded({ extended: false }));
app.use(twilio.webhook({ validate: true }));

const say = (path, body) => console.log(JSON.stringify({ path, ...body }));

// What goes wrong with backends, by whom the app asks for.
const troubles = {
  slow: (response, answer) => setTimeout(() => response.type("text/xml").send(answer.toString()), 5000),
  broken: () => {
    throw new Error("the customer's record is gone");
  },
  oversized: (response, answer) => {
    answer.dial().client("bob").parameter({ name: "note", value: "x".repeat(70000) });
    response.type("text/xml").send(answer.toString());
  },
  inwards: (response) => response.redirect(307, "http://127.0.0.1:1/voice"),
  speaking: (response, answer) => {
    answer.say("Nobody is there");
    response.type("text/xml").send(answer.toString());
  },
};

app.post("/voice", (request, response) => {
  say("/voice", request.body);
  const answer = new twilio.twiml.VoiceResponse();
  const trouble = troubles[request.body.To];
  if (trouble) return trouble(response, answer);
  if (request.body.To === "closed") {
    answer.reject({ reason: "busy" });
  } else {
    const dial = answer.dial({ answerOnBridge: true, timeout: 20, timeLimit: 3600, action: "/over" });
    const client = dial.client({
      statusCallback: "/status",
      statusCallbackEvent: ["initiated", "ringing", "answered", "completed"],
    });
    client.identity(request.body.To);
    client.parameter({ name: "caller_first_name", value: request.body.first_name });
  }
  response.type("text/xml").send(answer.toString());
});

app.post("/status", (request, response) => {
  say("/status", request.body);
  response.sendStatus(204);
});

app.post("/over", (request, response) => {
  say("/over", request.body);
  response.type("text/xml").send(new twilio.twiml.VoiceResponse().toString());
});

const server = app.listen(Number(process.argv[2]), "127.0.0.1", () => say("listening", server.address()));
