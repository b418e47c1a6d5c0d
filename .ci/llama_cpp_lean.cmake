# Read by llama-cpp-python's build (CMAKE_PROJECT_llama_cpp_INCLUDE): leave out llama.cpp's
# "common" library (chat parsing, downloads, command lines), of which the Python package uses
# nothing. A normal variable wins over the cache entry that the package forces to ON.
set(LLAMA_BUILD_COMMON OFF)

# Nor its AMX kernels: they abort on MLA (offload/bench/llama_cpp.py has the story). With them,
# `bench --compare` would have to do without all re-arranged weights.
include(CheckCCompilerFlag)
include(CheckCXXCompilerFlag)
check_c_compiler_flag(-mno-amx-int8 C_CAN_LEAVE_OUT_AMX)
check_cxx_compiler_flag(-mno-amx-int8 CXX_CAN_LEAVE_OUT_AMX)
if(C_CAN_LEAVE_OUT_AMX AND CXX_CAN_LEAVE_OUT_AMX)
  add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-mno-amx-int8>")
endif()
