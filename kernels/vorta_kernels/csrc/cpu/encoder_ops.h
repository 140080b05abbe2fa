// The operators of text encoders, which see a batch as one row of tokens behind each other ("packed"): a text is the tokens
// from offsets[b] to offsets[b + 1] - 1, and nothing is padded.
#pragma once

#include <vector>

#include "ort_abi.h"

namespace vorta {

std::vector<ort::CustomOp> encoder_ops();

}  // namespace vorta
