// The Python module: one type, `Mapping`, of a message type and how it is written and read.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <memory>
#include <new>

#include "buffer.hpp"
#include "reader.hpp"
#include "table.hpp"
#include "writer.hpp"

namespace {

using vorta::Enum;
using vorta::Field;
using vorta::Message;
using vorta::Table;

using Entries = std::vector<std::pair<std::string, std::int32_t>>;

struct Mapping {
  PyObject_HEAD
  Table* table;
};

// Calls a function with every item of a sequence. False, with an exception set, if it is none or the function says so.
template <typename Function>
bool for_each(PyObject* sequence, Function function) {
  PyObject* const items = PySequence_Fast(sequence, "a sequence is expected");
  if (items == nullptr) return false;
  bool is_good = true;
  for (Py_ssize_t index = 0; is_good && index < PySequence_Fast_GET_SIZE(items); ++index) {
    is_good = function(PySequence_Fast_GET_ITEM(items, index));
  }
  Py_DECREF(items);
  return is_good;
}

bool read_entries(PyObject* sequence, Entries& entries) {
  return for_each(sequence, [&entries](PyObject* item) {
    const char* text;
    Py_ssize_t size;
    int number;
    if (!PyArg_ParseTuple(item, "s#i", &text, &size, &number)) return false;
    entries.emplace_back(std::string(text, static_cast<std::size_t>(size)), number);
    return true;
  });
}

bool read_enum(PyObject* item, Enum& type) {
  int is_closed, is_null;
  PyObject *names, *texts;
  Entries by_name, by_number;
  if (!PyArg_ParseTuple(item, "ppOO", &is_closed, &is_null, &names, &texts)) return false;
  if (!read_entries(names, by_name) || !read_entries(texts, by_number)) return false;
  type.is_closed = is_closed != 0;
  type.is_null = is_null != 0;
  type.names.build(std::move(by_name));
  for (auto& [text, number] : by_number) type.texts.emplace_back(number, std::move(text));
  return true;
}

bool read_field(PyObject* item, const Table& table, Field& field) {
  const char* key;
  Py_ssize_t size, message, enumeration;
  int kind, is_repeated, is_map, is_packed, has_presence, takes_null, oneof;
  if (!PyArg_ParseTuple(item, "Iis#pppppinn", &field.number, &kind, &key, &size, &is_repeated, &is_map, &is_packed,
                        &has_presence, &takes_null, &oneof, &message, &enumeration)) {
    return false;
  }
  const auto num_messages = static_cast<Py_ssize_t>(table.messages.size());
  const auto num_enums = static_cast<Py_ssize_t>(table.enums.size());
  if (kind < 1 || kind > 18 || message >= num_messages || enumeration >= num_enums ||
      oneof >= static_cast<int>(vorta::kMaxFields) || (kind == 11 && message < 0) || (kind == 14 && enumeration < 0)) {
    PyErr_SetString(PyExc_ValueError, "a field is malformed");
    return false;
  }
  field.kind = static_cast<vorta::Kind>(kind);
  field.key.assign(key, static_cast<std::size_t>(size));
  field.is_repeated = is_repeated != 0;
  field.is_map = is_map != 0;
  field.is_packed = is_packed != 0;
  field.has_presence = has_presence != 0;
  field.takes_null = takes_null != 0;
  field.oneof = static_cast<std::int16_t>(oneof);
  field.message = message < 0 ? nullptr : table.messages[static_cast<std::size_t>(message)].get();
  field.enumeration = enumeration < 0 ? nullptr : table.enums[static_cast<std::size_t>(enumeration)].get();
  return true;
}

// Whether a type has the fields that its form is read and written by.
bool is_sound(const Message& type) {
  const std::size_t count = type.fields.size();
  if (count > vorta::kMaxFields) return false;
  for (const Field& field : type.fields) {
    if (field.is_map && (field.message == nullptr || field.message->fields.size() != 2)) return false;
  }
  switch (type.form) {
    case vorta::Form::kWrapper:
    case vorta::Form::kStruct:
    case vorta::Form::kListValue:
      return count == 1;
    case vorta::Form::kValue:
      return count == 6;
    default:
      return true;
  }
}

bool read_message(PyObject* item, const Table& table, Message& type) {
  int form;
  PyObject *names, *fields;
  Entries entries;
  if (!PyArg_ParseTuple(item, "iOO", &form, &names, &fields) || !read_entries(names, entries)) return false;
  const bool is_good = for_each(fields, [&](PyObject* field) {
    type.fields.emplace_back();
    return read_field(field, table, type.fields.back());
  });
  if (!is_good) return false;
  type.form = static_cast<vorta::Form>(form);
  for (const auto& [name, index] : entries) {
    if (index < 0 || static_cast<std::size_t>(index) >= type.fields.size()) {
      PyErr_SetString(PyExc_ValueError, "a name is of no field");
      return false;
    }
  }
  type.names.build(std::move(entries));
  type.index();
  return true;
}

bool read_table(PyObject* messages, PyObject* enums, Table& table) {
  const Py_ssize_t num_messages = PySequence_Size(messages), num_enums = PySequence_Size(enums);
  if (num_messages < 0 || num_enums < 0) return false;
  // Types contain each other, so all of them have their places before any is filled.
  for (Py_ssize_t index = 0; index < num_messages; ++index) table.messages.push_back(std::make_unique<Message>());
  for (Py_ssize_t index = 0; index < num_enums; ++index) table.enums.push_back(std::make_unique<Enum>());
  auto type = table.enums.begin();
  if (!for_each(enums, [&](PyObject* item) { return read_enum(item, **type++); })) return false;
  auto message = table.messages.begin();
  if (!for_each(messages, [&](PyObject* item) { return read_message(item, table, **message++); })) return false;
  bool is_good = !table.messages.empty();
  for (const auto& made : table.messages) is_good = is_good && is_sound(*made);
  if (!is_good) PyErr_SetString(PyExc_ValueError, "a message type is malformed");
  return is_good;
}

PyObject* mapping_new(PyTypeObject* type, PyObject* arguments, PyObject*) {
  PyObject *messages, *enums;
  int always_print, enum_numbers, ignore_unknown;
  if (!PyArg_ParseTuple(arguments, "OOppp", &messages, &enums, &always_print, &enum_numbers, &ignore_unknown)) {
    return nullptr;
  }
  try {
    auto table = std::make_unique<Table>();
    table->always_print = always_print != 0;
    table->enum_numbers = enum_numbers != 0;
    table->ignore_unknown = ignore_unknown != 0;
    if (!read_table(messages, enums, *table)) return nullptr;
    auto* const made = reinterpret_cast<Mapping*>(type->tp_alloc(type, 0));
    if (made != nullptr) made->table = table.release();
    return reinterpret_cast<PyObject*>(made);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

void mapping_dealloc(PyObject* self) {
  delete reinterpret_cast<Mapping*>(self)->table;
  PyTypeObject* const type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// Calls a conversion of bytes to bytes; None if it does not go, for whatever reason.
template <typename Convert>
PyObject* converted(PyObject* data, Convert convert) {
  if (!PyBytes_Check(data)) Py_RETURN_NONE;
  try {
    vorta::Buffer out;
    if (!convert(std::string_view(PyBytes_AS_STRING(data), static_cast<std::size_t>(PyBytes_GET_SIZE(data))), out)) {
      Py_RETURN_NONE;
    }
    return PyBytes_FromStringAndSize(out.data(), static_cast<Py_ssize_t>(out.size()));
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

PyObject* mapping_read(PyObject* self, PyObject* data) {
  const Table& table = *reinterpret_cast<Mapping*>(self)->table;
  return converted(data, [&table](std::string_view text, vorta::Buffer& out) {
    return vorta::Reader(table, text, out).run();
  });
}

PyObject* mapping_write(PyObject* self, PyObject* data) {
  const Table& table = *reinterpret_cast<Mapping*>(self)->table;
  return converted(data, [&table](std::string_view wire, vorta::Buffer& out) {
    return vorta::Writer(table, out).run(wire);
  });
}

PyMethodDef kMethods[] = {
    {"read", mapping_read, METH_O, "Wire bytes of a JSON text; None if it takes the codec in Python."},
    {"write", mapping_write, METH_O, "JSON text of wire bytes; None if it takes the codec in Python."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot kSlots[] = {
    {Py_tp_new, reinterpret_cast<void*>(mapping_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(mapping_dealloc)},
    {Py_tp_methods, kMethods},
    {0, nullptr},
};

PyType_Spec kSpec = {"vorta_json.Mapping", sizeof(Mapping), 0, Py_TPFLAGS_DEFAULT, kSlots};

int execute(PyObject* module) {
  PyObject* const type = PyType_FromSpec(&kSpec);
  if (type == nullptr) return -1;
  const int result = PyModule_AddObjectRef(module, "Mapping", type);
  Py_DECREF(type);
  return result;
}

PyModuleDef_Slot kModuleSlots[] = {{Py_mod_exec, reinterpret_cast<void*>(execute)}, {0, nullptr}};

PyModuleDef kModule = {PyModuleDef_HEAD_INIT, "vorta_json", nullptr, 0, nullptr, kModuleSlots,
                       nullptr,               nullptr,      nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_vorta_json() { return PyModuleDef_Init(&kModule); }
