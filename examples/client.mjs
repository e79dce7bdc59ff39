// Ask a server with OpenAI's client for JavaScript, and print the answer as it comes.
//
//   npm install openai
//   node examples/client.mjs picture.png "what is on the left?"

import { readFileSync } from "node:fs";
import OpenAI from "openai";

const [picture, question] = process.argv.slice(2);
const client = new OpenAI({
  baseURL: process.env.COMP_EXPORT_URL ?? "http://127.0.0.1:8000/v1",
  apiKey: process.env.COMP_EXPORT_API_KEY ?? "none",
});
const url = "data:image/png;base64," + readFileSync(picture).toString("base64");
const stream = await client.chat.completions.create({
  model: process.env.COMP_EXPORT_MODEL ?? "tiny-llava-0.62",
  messages: [
    {
      role: "user",
      content: [
        { type: "image_url", image_url: { url } },
        { type: "text", text: question },
      ],
    },
  ],
  max_tokens: 32,
  temperature: 0,
  stream: true,
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
}
process.stdout.write("\n");
