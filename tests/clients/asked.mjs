// What every client asks. Called with: address of the server, key, name of the model.
export const [url, key, model] = process.argv.slice(2);
export const question = "What is a routed expert?";
export const sum = "What is 2 plus 3?";
export const parameters = {
  type: "object",
  properties: { a: { enum: [1, 2, 3] }, b: { enum: [1, 2, 3] } },
  required: ["a", "b"],
  additionalProperties: false,
};
