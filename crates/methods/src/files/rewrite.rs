//! A model folder written anew with some tensors changed: the files' names, their order of tensors over shards, names
//! and element kinds stay those of the base.

use std::collections::BTreeMap;
use std::path::Path;

use pleach_base::{Result, ResultExt, code};
use pleach_nn::{BackboneConfig, Dtype, Entry, Found, ModelDir, OutTensor, TensorFile, in_folder, write_tensors};
use serde_json::{Map, json};
use tch::{Kind, Tensor};

use super::folder::{whole, write_json};
use super::tied::Changes;

/// What is written.
pub(super) struct Rewrite<'a> {
    pub(super) model: &'a dyn BackboneConfig,
    pub(super) dir: &'a ModelDir,
    pub(super) changes: &'a Changes,
    /// Kind of all floating-point tensors; that of each in the base when absent.
    pub(super) kind: Option<Kind>,
    /// Names become the class's, and tensors that the class has not are left out: for files of another class.
    pub(super) class_names: bool,
}

impl Rewrite<'_> {
    /// Writes the weights into `to` and returns names and sizes of the files.
    pub(super) fn write(&self, to: &Path) -> Result<Vec<(String, u64)>> {
        let names = self.names()?;
        let mut missing: Vec<&String> = self.changes.tensors.keys().collect();
        missing.retain(|name| !names.values().any(|place| place.class == **name));
        let files: Vec<&TensorFile> = self.dir.files().iter().collect();
        let (mut written, mut index, mut total) = (Vec::new(), Map::new(), 0);
        for (number, file) in files.iter().enumerate() {
            let name = file_name(file.path());
            let mut out = self.kept(file, &names);
            if number + 1 == files.len() {
                let kind = self.kind.or_else(|| common_kind(file)).unwrap_or(Kind::Float);
                let added =
                    missing.iter().map(|name| ((*name).clone(), OutTensor::of(&self.changes.tensors[*name]).to(kind)));
                out.extend(added);
            }
            for (tensor, value) in &out {
                index.insert(tensor.clone(), json!(name));
                total += value.len();
            }
            let path = to.join(&name);
            whole(&path, |path| write_tensors(path, out))?;
            let bytes = path.metadata().or_code(code::IO, || format!("{}: cannot be read", path.display()))?.len();
            written.push((name, bytes));
        }
        if files.len() > 1 {
            index.sort_keys();
            let value = json!({"metadata": {"total_size": total}, "weight_map": index});
            write_json(&to.join("model.safetensors.index.json"), &value)?;
        }
        Ok(written)
    }

    /// From names in the files to places in the class's tensors, for all tensors that the class has.
    fn names(&self) -> Result<BTreeMap<String, Place>> {
        let mut names = BTreeMap::new();
        for tensor in self.model.tensors() {
            let class = tensor.name.clone();
            match in_folder(self.model, &class, self.dir)? {
                Found::Nowhere => {}
                Found::Whole(entry) => drop(names.insert(entry.name.to_owned(), Place { class, piece: None })),
                Found::Pieces(experts) => {
                    for (expert, parts) in experts.iter().enumerate() {
                        let mut row = 0;
                        for part in parts {
                            let rows = part.shape.first().copied().unwrap_or_default() as i64;
                            let piece = Some([expert as i64, row, rows]);
                            names.insert(part.name.to_owned(), Place { class: class.clone(), piece });
                            row += rows;
                        }
                    }
                }
            }
        }
        Ok(names)
    }

    /// The tensors of one file, changed where they are to be.
    fn kept<'f>(&'f self, file: &'f TensorFile, names: &BTreeMap<String, Place>) -> BTreeMap<String, OutTensor<'f>> {
        let mut out = BTreeMap::new();
        for entry in file.names().filter_map(|name| file.get(name)) {
            let place = names.get(entry.name);
            let class = place.map(|place| &place.class);
            let stale = self.changes.dropped.contains(entry.name) && class.is_none();
            if stale || (class.is_none() && self.class_names) {
                continue;
            }
            // A tensor that the class does not list may be one that an untied site gets.
            let key = class.map_or(entry.name, String::as_str);
            let kind = self.kind.filter(|_| is_float(&entry));
            let value = match self.changes.tensors.get(key) {
                Some(new) => {
                    let piece = place.map_or_else(|| new.shallow_clone(), |place| place.of(new));
                    OutTensor::of(&piece).to_dtype(entry.dtype)
                }
                None => OutTensor::raw(&entry),
            };
            let value = match kind {
                Some(kind) => value.to(kind),
                None => value,
            };
            let whole = place.is_none_or(|place| place.piece.is_none());
            let name = if self.class_names && whole { key } else { entry.name };
            out.insert(name.to_owned(), value);
        }
        out
    }
}

/// Which tensor of the class, or which part of it, a tensor of a file is.
struct Place {
    class: String,
    /// Expert, first row, rows.
    piece: Option<[i64; 3]>,
}

impl Place {
    fn of(&self, tensor: &Tensor) -> Tensor {
        match self.piece {
            None => tensor.shallow_clone(),
            Some([expert, row, rows]) => tensor.get(expert).narrow(0, row, rows),
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn is_float(entry: &Entry<'_>) -> bool {
    matches!(entry.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// The kind of a file's first floating-point tensor.
fn common_kind(file: &TensorFile) -> Option<Kind> {
    let entry = file.names().filter_map(|name| file.get(name)).find(is_float)?;
    pleach_nn::kind_of(entry.dtype)
}
