#include "bind.h"

#define RANGO_HEADER "products.h"
#include "each_isa.h"
#define RANGO_HEADER "narrow.h"
#include "each_isa.h"

namespace rango {

void bind_products(nb::module_& module) {
  nb::class_<Weight>(module, "Weight")
      .def_static("floating",
                  [](int kind, Address data, int64_t rows, int64_t columns, int64_t stride) {
                    Weight w;
                    w.kind = static_cast<Kind>(kind);
                    w.data = at<void>(data);
                    w.rows = rows, w.columns = columns, w.stride = stride;
                    return w;
                  })
      .def_static("int8",
                  [](Address data, int64_t rows, int64_t columns, Address scales) {
                    Weight w;
                    w.kind = Kind::int8;
                    w.data = at<void>(data);
                    w.rows = rows, w.columns = columns, w.stride = columns;
                    w.scales = at<float>(scales);
                    return w;
                  })
      .def_static("nf4", [](Address data, int64_t rows, int64_t columns, Address code,
                            int64_t block, Address absmax, Address nested_absmax,
                            Address nested_code, int64_t nested_block, float offset) {
        Weight w;
        w.kind = Kind::nf4;
        w.data = at<void>(data);
        w.rows = rows, w.columns = columns, w.stride = columns;
        w.code = at<float>(code);
        w.block = block;
        if (nested_absmax) {
          w.absmax_codes = at<uint8_t>(absmax);
          w.nested_absmax = at<float>(nested_absmax);
          w.nested_code = at<float>(nested_code);
          w.nested_block = nested_block;
          w.offset = offset;
        } else {
          w.absmax = at<float>(absmax);
        }
        return w;
      });
  nb::class_<Term>(module, "Term")
      .def("__init__", [](Term* self, Address a, int64_t a_row, int64_t a_column, int64_t depth,
                          const Weight& b, bool transposed, int64_t from, int64_t to) {
        new (self) Term{at<float>(a), a_row, a_column, depth, b, transposed, from, to};
      });
  module.def(
      "sum_products",
      [](Address c, int64_t c_row, int64_t rows, int64_t columns, const std::vector<Term>& terms,
         Address start, int64_t start_row, int threads) {
        const int count = static_cast<int>(terms.size());
        const bool done = RANGO_KERNEL(narrow_products)(
            at<float>(c), c_row, rows, columns, terms.data(), count, at<float>(start), start_row,
            threads);
        if (!done)
          RANGO_KERNEL(sum_products)
          (at<float>(c), c_row, rows, columns, terms.data(), count, at<float>(start), start_row,
           threads);
      },
      Unlocked());
}

}  // namespace rango
