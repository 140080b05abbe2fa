/** The contract's enums as the strings that callers use: "cosine" for DISTANCE_COSINE. */

import type { DescEnum } from "@bufbuild/protobuf";

import { InvalidArgument } from "./errors.js";

/** The names of an enum's values, lower case and without their prefix. */
export type EnumName<E> = Lowercase<Extract<keyof E, string>>;

/** The name of a value; "unspecified" for one that only newer contracts have. */
export function enumName<E>(desc: DescEnum, value: number): EnumName<E> {
  return (desc.value[value]?.localName.toLowerCase() ?? "unspecified") as EnumName<E>;
}

/** The value of a name. Throws InvalidArgument that names the field and the names that there are. */
export function enumValue<E>(desc: DescEnum, name: string | undefined, field: string): E[keyof E] | undefined {
  if (name === undefined) {
    return undefined;
  }
  const found = desc.values.find((value) => value.localName.toLowerCase() === name);
  if (found === undefined) {
    const known = desc.values.filter((value) => value.number !== 0).map((value) => value.localName.toLowerCase());
    throw new InvalidArgument(`${field} must be one of ${known.join(", ")}, not ${JSON.stringify(name)}`, {
      reason: "INVALID_FIELD",
      field,
    });
  }
  return found.number as E[keyof E];
}
